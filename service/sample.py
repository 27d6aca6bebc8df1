"""Draw from a trained generator: `python -m service.sample CHECKPOINT SHEET --out FILE`."""

import contextlib
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from models import Stage
from service.address import Address
from service.cli import Count, Options, Positional, Seed, Shown, Text, parse, run_command
from service.config.vocabulary import WeightsName
from service.errors import UsageError
from service.generation.destinations import Destination, Format, format_of
from service.generation.look import (
    ANIMATED,
    NEEDS_STYLES,
    SHOWN_PIXELS,
    STANDING_BATCHES,
    Drawn,
    Look,
)
from service.recording import pictures
from service.storage import open_storage, split_address

if TYPE_CHECKING:
    from service.generation.images import Spread
    from service.generation.sheets import Frames, Subject
    from service.run.best import Trained

DESCRIPTION = """Draw pictures from a checkpoint: a sheet, or any number of separate images. The same
command gives the same file."""
EPILOG = """sheets:
  grid           images of each class, one class per column
  truncation     the same images at falling truncation, one threshold or psi per column
  interpolation  from one image to the next in steps, one pair per row; animated as .webp or .gif
  timelapse      the run's panel over the whole training, animated (CHECKPOINT is a run.dir)
  mixing         styles of the row's image replaced by the column's, in coarse, middle and fine
                 layers (stylegan)
  noise          the same styles without noise, and with several draws of it (stylegan)

separate images:
  images         --count of them, the classes in turn, as
                   a new folder or s3:// prefix: PNGs named by number, labels in dataset.json
                   .zip: the same files
                   .npz: images (uint8 [n, h, w, c]) and labels (int64 [n]), as FID tools take them
                   --format shards: a new folder or s3:// prefix to train on with --data.url
                 Seed and number decide an image, whatever else is drawn. So --start 500 --count 500
                 draws the second half of --count 1000.

CHECKPOINT is a run.dir (its best checkpoint) or a folder in its checkpoints/; local or s3://.

examples:
  python -m service.sample runs/digits grid --out digits.png --rows 8
  python -m service.sample runs/digits truncation --out truncation.png --classes 3,5
  python -m service.sample runs/flowers grid --out daisies.png --classes daisy,rose
  python -m service.sample runs/digits interpolation --out walk.webp --steps 24
  python -m service.sample runs/digits timelapse --out training.webp
  python -m service.sample s3://gan/runs/faces mixing --out mixing.png --psi 0.7 --cutoff 8
  python -m service.sample runs/digits images --out digits.npz --count 50000
  python -m service.sample runs/flowers images --out daisies.zip --count 100 --classes daisy
  python -m service.sample runs/faces images --out s3://gan/drawn --count 10000 --format shards"""

LONGEST_FRAME_MS = 60_000
WRITE_RETRY_S = 20.0
MOST_IMAGES = 10**8
SHEETS_ONLY = ("rows", "columns", "steps", "frame_ms", "pixels")
IMAGES_ONLY = ("count", "start", "format", "batch", "shard_samples", "workers")

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
    sheet: Annotated[Positional[Drawn], Shown("SHEET")] = "grid"
    """grid, truncation, interpolation, timelapse, mixing or noise; or images, separate ones"""
    out: Text
    """file or s3:// object to write: .png, or .webp or .gif for animations; of images: a new folder or
    s3:// prefix, .zip or .npz"""
    count: Annotated[int | None, Field(ge=1, le=MOST_IMAGES)] = None
    """how many separate images"""
    start: Annotated[int, Field(ge=0, le=MOST_IMAGES - 1)] = 0
    """number of the first separate image, to draw a share of a larger set"""
    format: Format | None = None
    """how separate images are written (default: zip or npz by the suffix of --out, else folder)"""
    shard_samples: Count = 1000
    """separate images per shard"""
    batch: Annotated[int, Field(ge=1, le=100_000)] = 256
    """how many separate images may wait in memory to be written; changes no image"""
    workers: Count | None = None
    """draw separate images with so many Ray workers, of a CPU each, at RAY_ADDRESS; changes no image"""
    seed: Seed = 0
    """seed of latents, noise and standing statistics"""
    rows: Side = 8
    """rows of a sheet, or images on an animated walk"""
    columns: Side = 10
    """columns of a sheet, if classes do not set them"""
    classes: Annotated[tuple[str, ...] | None, BeforeValidator(_parts), Shown("CLASSES")] = None
    """labels or names, such as 0,3,5 or daisy,rose (default: all; on sheets up to --columns of them)"""
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
        if not all(map(math.isfinite, self.psis)):
            raise ValueError(f"--psi {self.psi}: give a number, such as 0.7")
        if self.sheet == "images":
            self._refuse(SHEETS_ONLY, "only sheets take it, images do not")
            self._check_images()
        else:
            self._refuse(IMAGES_ONLY, f"only images take it, sheets such as {self.sheet} do not")
            self._check_sheet()
        return self

    def _refuse(self, names: Sequence[str], reason: str) -> None:
        """ValueError if one of these options is given."""
        for name in names:
            if name in self.model_fields_set:
                raise ValueError(f"--{name.replace('_', '-')}: {reason}; leave it out")

    def _check_images(self) -> None:
        if self.count is None:
            raise ValueError("--count: missing; say how many images, such as --count 50000")
        if self.start + self.count > MOST_IMAGES:
            raise ValueError(
                f"--start {self.start}: --count {self.count} from there ends beyond image"
                f" {MOST_IMAGES:,}, the last there is; start earlier, or use another --seed"
            )
        kind = format_of(self.out, self.format)
        if "shard_samples" in self.model_fields_set and kind != "shards":
            raise ValueError(f"--shard-samples: only --format shards takes it, and {kind} is written")

    def _check_sheet(self) -> None:
        allowed = [".png"] if self.sheet not in ANIMATED else [".png", *pictures.ANIMATIONS]
        if self.sheet == "timelapse":
            allowed.remove(".png")
        try:
            split_address(self.out)
        except ValueError as error:
            raise ValueError(f"--out {error}") from error
        if self.suffix not in allowed:
            raise ValueError(f"--out {self.out}: a {self.sheet} is written as {' or '.join(allowed)}")
        if self.sheet == "truncation" and self.psi != 1.0:
            raise ValueError("--psi: a truncation sheet shows several values; leave it out")
        if self.sheet == "timelapse" and self.resolution is not None:
            raise ValueError("--resolution: a timelapse shows what the run drew; leave it out")


def main(arguments: Sequence[str]) -> None:
    """Parse, build, run, close."""
    options = parse(SampleOptions, arguments, "service.sample", DESCRIPTION, EPILOG)
    if options.sheet == "images":
        _destination(options).check()
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
    if options.sheet == "images":
        _write_images(options, subject)
    else:
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


def _destination(options: SampleOptions) -> Destination:
    kind = format_of(options.out, options.format)
    return Destination(options.out, kind, WRITE_RETRY_S, options.batch, options.shard_samples)


def _write_images(options: SampleOptions, subject: "Subject") -> None:
    from service.generation.images import draw_images, image_set

    begun, images = time.monotonic(), image_set(subject, options.start, options.count or 0)
    with _spread(options) as spread, contextlib.closing(draw_images(subject, images, spread)) as drawn:
        size = _destination(options).write(images, drawn)
    seconds = time.monotonic() - begun
    print(
        f"{options.out}: {images.count:,} images, {size / 1e6:.2f} MB, in {seconds:.1f} s"
        f" ({images.count / seconds:,.0f} per second)"
    )


def _spread(options: SampleOptions) -> "contextlib.AbstractContextManager[Spread]":
    """What draws: Ray's workers, or this process's threads."""
    if options.workers:
        from service.driver.drawing import drawn_by

        return drawn_by(options.workers)
    from service.generation.images import on_threads

    return contextlib.nullcontext(on_threads)


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
    if options.cutoff is not None and options.sheet != "truncation" and set(options.psis) == {1.0}:
        raise UsageError(f"--cutoff {options.cutoff}: without --psi nothing is truncated; add --psi 0.7")


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
        limit = count if options.sheet == "images" else options.columns
        return list(range(min(count or 1, limit or 1)))
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
