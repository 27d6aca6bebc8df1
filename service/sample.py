"""Draw from a trained generator: `python -m service.sample CHECKPOINT SHEET --out FILE`."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from models import Stage
from service.address import Address
from service.cli import Count, Options, Positional, Seed, Shown, Text, parse, run_command
from service.config.vocabulary import WeightsName
from service.errors import UsageError
from service.generation.look import (
    ANIMATED,
    NEEDS_STYLES,
    SHOWN_PIXELS,
    STANDING_BATCHES,
    Look,
    SheetName,
)
from service.recording import pictures
from service.storage import open_storage, split_address

if TYPE_CHECKING:
    from service.generation.sheets import Frames, Subject
    from service.run.best import Trained

DESCRIPTION = "Draw pictures from a checkpoint. The same command gives the same file."
EPILOG = """sheets:
  grid           images of each class, one class per column
  truncation     the same images at falling truncation, one threshold or psi per column
  interpolation  from one image to the next in steps, one pair per row; animated as .webp or .gif
  timelapse      the run's panel over the whole training, animated (CHECKPOINT is a run.dir)
  mixing         styles of the row's image replaced by the column's, in coarse, middle and fine
                 layers (stylegan)
  noise          the same styles without noise, and with several draws of it (stylegan)

CHECKPOINT is a run.dir (its best checkpoint) or a folder in its checkpoints/; local or s3://.

examples:
  python -m service.sample runs/digits grid --out digits.png --rows 8
  python -m service.sample runs/digits truncation --out truncation.png --classes 3,5
  python -m service.sample runs/flowers grid --out daisies.png --classes daisy,rose
  python -m service.sample runs/digits interpolation --out walk.webp --steps 24
  python -m service.sample runs/digits timelapse --out training.webp
  python -m service.sample s3://gan/runs/faces mixing --out mixing.png --psi 0.7 --cutoff 8"""

LONGEST_FRAME_MS = 60_000
WRITE_RETRY_S = 20.0

Side = Annotated[int, Field(ge=1, le=1000)]


def _numbers(text: object) -> object:
    """`0.7` as a number, `0.7,0.5` as several."""
    if not isinstance(text, str):
        return text
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError("give a number, such as 0.7, or one for each layer, as 0.7,0.7,1") from error
    return values if len(values) > 1 else values[0]


def _parts(text: object) -> object:
    """`0,daisy,5` as a tuple."""
    if not isinstance(text, str):
        return text
    parts = tuple(part.strip() for part in text.split(","))
    if not all(parts):
        raise ValueError("write classes as 0,3,5 or daisy,rose")
    return parts


class SampleOptions(Options):
    """What to draw, and how."""

    checkpoint: Positional[Address]
    """a run.dir (its best checkpoint) or a folder in its checkpoints/; local or s3://"""
    sheet: Annotated[Positional[SheetName], Shown("SHEET")] = "grid"
    """grid, truncation, interpolation, timelapse, mixing or noise"""
    out: Text
    """file or s3:// object to write: .png, or .webp or .gif for animations"""
    seed: Seed = 0
    """seed of latents, noise and standing statistics"""
    rows: Side = 8
    """rows of a sheet, or images on an animated walk"""
    columns: Side = 10
    """columns of a sheet, if classes do not set them"""
    classes: Annotated[tuple[str, ...] | None, BeforeValidator(_parts), Shown("CLASSES")] = None
    """labels or names, such as 0,3,5 or daisy,rose (default: all, up to --columns of them)"""
    weights: WeightsName = "ema"
    """ema for the running average, generator for the last weights"""
    resolution: Annotated[Count | None, Shown("PX")] = None
    """a lower rung (default: the current rung)"""
    truncation: float | None = None
    """resample z beyond this threshold, such as 0.5 (default: never)"""
    psi: Annotated[float | tuple[float, ...], BeforeValidator(_numbers), Shown("X[,X…]")] = 1.0
    """share of w's distance from its average: one for all layers, or one for each, as 0.7,0.7,1
    (stylegan; default 1)"""
    cutoff: int | None = None
    """layers from this one on are not truncated (stylegan)"""
    noise: Literal["on", "off"] = "on"
    """noise in each layer (stylegan)"""
    steps: Annotated[int, Field(ge=2, le=10_000)] = 10
    """images from one end of a walk to the other"""
    frame_ms: Annotated[int, Field(ge=10, le=LONGEST_FRAME_MS)] = 100
    """milliseconds per frame"""
    standing_batches: Annotated[int, Field(ge=1, le=10_000)] = STANDING_BATCHES
    """batches of 64 images to measure batch norm's statistics over"""
    pixels: Annotated[int, Field(ge=1, le=4096)] = SHOWN_PIXELS
    """enlarge smaller images by a whole factor, to at most this many pixels per side"""

    @property
    def suffix(self) -> str:
        """The suffix of the file to write."""
        return Path(self.out).suffix.lower()

    @property
    def psis(self) -> tuple[float, ...]:
        """Psi as a tuple."""
        return self.psi if isinstance(self.psi, tuple) else (self.psi,)

    @field_validator("truncation")
    @classmethod
    def _is_threshold(cls, value: float | None) -> float | None:
        if value is not None and not 0 < value < math.inf:
            raise ValueError("give a threshold above 0, such as 0.5")
        return value

    @model_validator(mode="after")
    def _go_together(self) -> "SampleOptions":
        allowed = [".png"] if self.sheet not in ANIMATED else [".png", *pictures.ANIMATIONS]
        if self.sheet == "timelapse":
            allowed.remove(".png")
        try:
            split_address(self.out)
        except ValueError as error:
            raise ValueError(f"--out {error}") from error
        if self.suffix not in allowed:
            raise ValueError(f"--out {self.out}: a {self.sheet} is written as {' or '.join(allowed)}")
        if not all(map(math.isfinite, self.psis)):
            raise ValueError(f"--psi {self.psi}: give a number, such as 0.7")
        if self.sheet == "truncation" and self.psi != 1.0:
            raise ValueError("--psi: a truncation sheet shows several values; leave it out")
        if self.sheet == "timelapse" and self.resolution is not None:
            raise ValueError("--resolution: a timelapse shows what the run drew; leave it out")
        return self


def main(arguments: Sequence[str]) -> None:
    """Parse, build, run, close."""
    options = parse(SampleOptions, arguments, "service.sample", DESCRIPTION, EPILOG)
    # here because they load torch, which errors and --help do not need
    from service.generation.sheets import SHEETS, Subject
    from service.run.best import load

    trained = load(options.checkpoint, options.weights)
    subject = Subject(trained, _look(options), _stage(trained, options), _chosen(trained, options))
    _check_family(options, subject)
    print(
        f"{trained.address}: {trained.family}, {options.weights} after {trained.clock:,} images,"
        f" drawn at {subject.stage.resolution} px"
    )
    _write(options, SHEETS[options.sheet](subject))


def _look(options: SampleOptions) -> Look:
    return Look(
        seed=options.seed,
        rows=options.rows,
        columns=options.columns,
        truncation=options.truncation,
        psi=options.psi,
        cutoff=options.cutoff,
        noise=options.noise == "on",
        steps=options.steps,
        animated=options.suffix in pictures.ANIMATIONS,
        standing_batches=options.standing_batches,
        pixels=options.pixels,
    )


def _write(options: SampleOptions, frames: "Frames") -> None:
    if options.suffix in pictures.ANIMATIONS:
        data = pictures.animation(frames, options.suffix, options.frame_ms)
    else:
        data = pictures.png(frames[0])
    folder, name = split_address(options.out)
    open_storage(folder, WRITE_RETRY_S).put(name, data)
    count = f", {len(frames)} frames" if len(frames) > 1 else ""
    print(f"{options.out}: {len(data) / 1e6:.2f} MB{count}")


def _check_family(options: SampleOptions, subject: "Subject") -> None:
    """UsageError if the family lacks what the options need."""
    family, normalises = subject.trained.family, subject.trained.shape.normalises_latents
    if subject.has_styles:
        _check_styles(options, subject)
        return
    if options.sheet in NEEDS_STYLES:
        raise UsageError(f"{options.sheet}: {family} has no styles, only stylegan does")
    if options.psi != 1.0 or options.cutoff is not None:
        remedy = "leave them out" if normalises else "use --truncation"
        raise UsageError(f"--psi, --cutoff: {family} has no w; {remedy}")
    if normalises and (options.truncation is not None or options.sheet == "truncation"):
        raise UsageError(f"truncation: {family} normalises its latents, so none lie far out; drop it")


def _check_styles(options: SampleOptions, subject: "Subject") -> None:
    if options.truncation is not None:
        raise UsageError("--truncation: stylegan is truncated in w; use --psi and --cutoff")
    layers = subject.layers
    if len(options.psis) not in (1, layers):
        raise UsageError(f"--psi: {len(options.psis)} values for {layers} layers; give one for each")
    if options.cutoff is not None and not 0 <= options.cutoff <= layers:
        raise UsageError(f"--cutoff {options.cutoff}: there are {layers} layers; give 0 to {layers}")


def _stage(trained: "Trained", options: SampleOptions) -> Stage:
    if options.resolution is None:
        return trained.stage
    if options.resolution not in trained.rungs:
        rungs = ", ".join(map(str, trained.rungs))
        raise UsageError(f"--resolution {options.resolution}: not trained yet; choose one of {rungs}")
    return Stage(options.resolution)


def _chosen(trained: "Trained", options: SampleOptions) -> list[int]:
    """The labels to draw in turn."""
    count = trained.shape.classes
    if options.classes is None:
        return list(range(min(count or 1, options.columns)))
    if count is None:
        given = ",".join(options.classes)
        raise UsageError(f"--classes {given}: this model has no classes; leave it out")
    from service.pretrained import label_of

    labels = []
    for text in options.classes:
        try:
            labels.append(label_of(text, trained.classes, count))
        except ValueError as error:
            raise UsageError(f"--classes {text}: {error}") from error
    return labels


if __name__ == "__main__":
    run_command(main)
