"""Draw from a trained generator: `python -m service.sample CHECKPOINT SHEET --out FILE`."""

import argparse
import io
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from models import Stage, stylegan
from service.cli import check_bounds, run_command
from service.engine.curriculum import curriculum_of
from service.engine.sampler import NORMALISES_LATENTS, STANDING_BATCHES, Sampler
from service.errors import DataError, UsageError
from service.random.draws import Draws
from service.recording import pictures
from service.recording.pictures import Pixels
from service.storage import open_storage
from service.training.trained import RETRY_S, WEIGHTS, Trained, load

DESCRIPTION = "Draw pictures from a checkpoint. The same command gives the same file."
EPILOG = """sheets:
  grid           images of each class, a class a column
  truncation     the same images at falling truncation, a threshold or psi a column
  interpolation  on the way from one image to the next, a pair a row; animated as .webp or .gif
  timelapse      the run's panel over the whole training, animated (CHECKPOINT is a run.dir)
  mixing         styles of the row's image replaced by the column's, in coarse, middle and fine
                 layers (stylegan)
  noise          the same styles without noise and under several draws of it (stylegan)

CHECKPOINT is a run.dir, for its best, or one of the folders in its checkpoints/; local or s3://.

examples:
  python -m service.sample runs/digits grid --out digits.png --rows 8
  python -m service.sample runs/digits truncation --out truncation.png --classes 3,5
  python -m service.sample runs/digits interpolation --out walk.webp --steps 24
  python -m service.sample runs/digits timelapse --out training.webp
  python -m service.sample s3://gan/runs/faces mixing --out mixing.png --psi 0.7 --cutoff 8"""

THRESHOLDS = (2.0, 1.5, 1.0, 0.5, 0.04)
PSIS = (1.0, 0.7, 0.5, 0.0, -0.5, -1.0)
SHOWN_PIXELS = 64
NOISE_DRAWS = 4
LONGEST_FRAME_MS = 60_000


@dataclass(frozen=True)
class Panel:
    """Latents and labels of a grid of images, row by row."""

    latents: NDArray[np.float64]
    labels: NDArray[np.int64]
    noise_seeds: list[int]


@dataclass(frozen=True)
class Request:
    """What a sheet is drawn of, and how: the checkpoint, the options, and what follows from them."""

    trained: Trained
    options: argparse.Namespace
    stage: Stage
    classes: list[int]

    @property
    def has_styles(self) -> bool:
        """Whether it is a StyleGAN."""
        return self.layers > 0

    @property
    def layers(self) -> int:
        """How many layers take a style at the stage; 0 for other families."""
        generator = self.trained.generator
        return generator.layer_count(self.stage) if isinstance(generator, stylegan.Generator) else 0

    def sampler(self, truncation: float | None = None) -> Sampler:
        """The generator made ready; batch norm is measured within `truncation`."""
        return Sampler(
            self.trained.generator,
            self.trained.shape,
            self.stage,
            self.options.seed,
            truncation,
            self.options.standing_batches,
        )

    def panel(self, count: int, truncation: float | None = None) -> Panel:
        """`count` images, of the chosen classes in turn; truncation shrinks the same latents."""
        draws = Draws(self.options.seed, "sample", 0)
        numbers = np.arange(count)
        return Panel(
            draws.truncated(numbers, self.trained.shape.latents, truncation),
            np.array(self.classes)[numbers % len(self.classes)],
            draws.seeds(numbers, "noise"),
        )

    def draw(self, sampler: Sampler, panel: Panel, psi: float | Sequence[float]) -> Pixels:
        """uint8 [n, r, r, c], with noise unless it is off."""
        seeds = panel.noise_seeds if self.options.noise == "on" else None
        return sampler.draw(panel.latents, panel.labels, psi, self.options.cutoff, seeds)

    def grid(self, images: Pixels, columns: int) -> Pixels:
        """The images as one sheet, small ones enlarged."""
        return pictures.grid(images, columns, self.options.pixels)


Frames = list[Pixels]


def draw_grid(request: Request) -> Frames:
    """Images of each class, a class a column; ten columns of anything where there are no classes."""
    options = request.options
    columns = len(request.classes) if request.trained.shape.classes else options.columns
    panel = request.panel(columns * options.rows, options.truncation)
    images = request.draw(request.sampler(options.truncation), panel, options.psi)
    return [request.grid(images, columns)]


def draw_truncation(request: Request) -> Frames:
    """The same images, a row each, at every threshold of |z| (BigGAN and kin) or psi of w (StyleGAN)."""
    options = request.options
    rows = options.rows
    columns: list[Pixels] = []
    if request.has_styles:
        panel, sampler = request.panel(rows), request.sampler()
        for psi in PSIS:
            columns.append(request.draw(sampler, panel, psi))
        captions = [f"psi {psi:g}" for psi in PSIS]
    else:
        for threshold in (None, *THRESHOLDS):
            panel = request.panel(rows, threshold)
            columns.append(request.draw(request.sampler(threshold), panel, 1.0))
        captions = ["all z", *(f"|z|<{threshold:g}" for threshold in THRESHOLDS)]
    images = np.stack(columns, axis=1).reshape(-1, *columns[0].shape[1:])
    return [pictures.labelled(request.grid(images, len(columns)), captions)]


def draw_interpolation(request: Request) -> Frames:
    """From one image to the next: a row for each pair, or a walk through all of them, animated."""
    options = request.options
    animated = _suffix(options.out) in pictures.ANIMATIONS
    panel = request.panel(options.rows if animated else 2 * options.rows, options.truncation)
    sampler = request.sampler(options.truncation)
    count = len(panel.latents)
    # a walk returns to where it began; a sheet has a pair a row
    pairs = (
        [(i, (i + 1) % count) for i in range(count)]
        if animated
        else [(i, i + 1) for i in range(0, count, 2)]
    )
    shares = np.linspace(0, 1, options.steps, endpoint=not animated)
    paths = [_path(request, sampler, panel, pair, shares) for pair in tqdm(pairs, disable=None)]
    images = np.concatenate(paths)
    if animated:
        return [request.grid(image[None], 1) for image in images]
    return [request.grid(images, options.steps)]


def _path(
    request: Request, sampler: Sampler, panel: Panel, pair: tuple[int, int], shares: NDArray[np.float64]
) -> Pixels:
    """uint8 [shares, r, r, c] between two images: of styles along a line, of latents along an arc.

    The class is that of the nearer end, for labels do not blend.
    """
    options, ends = request.options, list(pair)
    first, last = pair
    if sampler.has_styles:
        start, end = sampler.styles(panel.latents[ends], panel.labels[ends], options.psi, options.cutoff)
        styles = torch.stack([torch.lerp(start, end, share) for share in shares])
        noise = [panel.noise_seeds[0]] * len(shares) if options.noise == "on" else None
        return sampler.paint(styles, noise)
    latents = np.stack([_slerp(panel.latents[first], panel.latents[last], share) for share in shares])
    return sampler.draw(latents, np.where(shares < 0.5, panel.labels[first], panel.labels[last]))


def _slerp(start: NDArray[np.float64], end: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """On the arc between two vectors, the length blended: normals stay where normals lie."""
    lengths = np.linalg.norm(start), np.linalg.norm(end)
    angle = np.arccos(np.clip(start @ end / (lengths[0] * lengths[1]), -1, 1))
    if np.sin(angle) < 1e-9:
        return (1 - share) * start + share * end
    weights = np.sin((1 - share) * angle) / np.sin(angle), np.sin(share * angle) / np.sin(angle)
    unit = weights[0] * start / lengths[0] + weights[1] * end / lengths[1]
    return unit * ((1 - share) * lengths[0] + share * lengths[1])


def draw_mixing(request: Request) -> Frames:
    """Sources along the top and the left; inside, the left's styles with some layers of the top's.

    Three blocks of rows: coarse, middle or fine layers come from the column's source (Karras et al.
    2019, figure 3).
    """
    options = request.options
    sampler = request.sampler()
    groups = _style_groups(request.layers)
    columns = options.columns
    panel = request.panel(columns + len(groups) * options.rows)
    styles = sampler.styles(panel.latents, panel.labels, options.psi, options.cutoff)
    tops, lefts = styles[:columns], styles[columns:]
    rows = [torch.cat([tops.mean(0, keepdim=True), tops])]
    captions = [""]
    for i, (name, chosen) in enumerate(groups.items()):
        for left in lefts[i * options.rows : (i + 1) * options.rows]:
            mixed = left.expand_as(tops).clone()
            mixed[:, chosen] = tops[:, chosen]
            rows.append(torch.cat([left[None], mixed]))
            captions.append(name)
    noise = [panel.noise_seeds[0]] * (len(rows) * (columns + 1)) if options.noise == "on" else None
    images = sampler.paint(torch.cat(rows), noise)
    images[0] = 0  # the corner belongs to no source
    return [pictures.labelled(request.grid(images, columns + 1), rows=captions)]


def _style_groups(layers: int) -> dict[str, slice]:
    """Coarse, middle and fine layers: the paper's from 64 px up, below that the last two resolutions."""
    resolutions = layers // 2
    middle, fine = (2, 4) if resolutions > 4 else (max(1, resolutions - 2), max(1, resolutions - 1))
    bounds = [0, 2 * middle, 2 * fine, layers]
    names = ("coarse", "middle", "fine")
    return {
        name: slice(first, last)
        for name, (first, last) in zip(names, itertools.pairwise(bounds), strict=True)
        if last > first
    }


def draw_noise(request: Request) -> Frames:
    """A row an image: without noise, under several draws of it, and how much they differ."""
    options = request.options
    sampler = request.sampler()
    panel = request.panel(options.rows)
    styles = sampler.styles(panel.latents, panel.labels, options.psi, options.cutoff)
    draws = Draws(options.seed, "noise sheet", 0)
    drawn = [
        sampler.paint(styles, draws.seeds(np.arange(options.rows) + i * options.rows, "noise"))
        for i in range(NOISE_DRAWS)
    ]
    deviation = np.stack(drawn).astype(np.float64).std(0)
    shown = (deviation * (255 / max(deviation.max(), 1e-9))).astype(np.uint8)
    columns = [sampler.paint(styles), *drawn, shown]
    images = np.stack(columns, axis=1).reshape(-1, *shown.shape[1:])
    captions = ["no noise", *(f"draw {i + 1}" for i in range(NOISE_DRAWS)), "deviation"]
    return [pictures.labelled(request.grid(images, len(columns)), captions)]


def draw_timelapse(request: Request) -> Frames:
    """The run's panel of fixed latents at every interval, with clock and stage above each."""
    trained = request.trained
    address = trained.address.rpartition("/checkpoints/")[0]
    storage = open_storage(address, RETRY_S)
    curriculum = curriculum_of(trained.config, trained.amendments)
    found = pictures.latest_grids(storage.sizes(f"{pictures.FOLDER}/"))
    if not found:
        raise DataError(f"{address}/{pictures.FOLDER}: no grids there; was the folder copied without?")
    frames = []
    for images, key in tqdm(found, disable=None):
        if images > trained.images:
            break
        try:
            stage = curriculum.before(images).stage
        except ValueError as error:
            raise DataError(
                f"{storage.url(key)}: of no clock that this run comes to; take it away"
            ) from error
        fading = f", alpha {stage.alpha:.2f}" if stage.fading else ""
        caption = f"{images:,} images, {stage.resolution} px{fading}"
        sheet = _read_png(storage.get(key), storage.url(key))
        frames.append(pictures.labelled(sheet, [caption]))
    if not frames:
        raise DataError(f"{address}/{pictures.FOLDER}: its grids are all later than {trained.address}")
    height, width = (max(frame.shape[axis] for frame in frames) for axis in (0, 1))
    return [_pad(frame, height, width) for frame in frames]


def _read_png(data: bytes, address: str) -> Pixels:
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.asarray(image)
    except OSError as error:
        raise DataError(f"{address}: not a picture ({error}); delete it, the rest will do") from error
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _pad(frame: Pixels, height: int, width: int) -> Pixels:
    return np.pad(frame, ((0, height - frame.shape[0]), (0, width - frame.shape[1]), (0, 0)))


SHEETS: dict[str, Callable[[Request], Frames]] = {
    "grid": draw_grid,
    "truncation": draw_truncation,
    "interpolation": draw_interpolation,
    "timelapse": draw_timelapse,
    "mixing": draw_mixing,
    "noise": draw_noise,
}
ANIMATED = {"interpolation", "timelapse"}
NEEDS_STYLES = {"mixing", "noise"}


def main(arguments: Sequence[str]) -> None:
    """Parse, build, run, close."""
    options = _parser().parse_intermixed_args(arguments)
    _check(options)
    trained = load(options.checkpoint, options.weights)
    request = Request(trained, options, _stage(trained, options), _classes(trained, options))
    _check_family(request)
    print(
        f"{trained.address}: {trained.family}, {options.weights} after {trained.images:,} images,"
        f" drawn at {request.stage.resolution} px"
    )
    frames = SHEETS[options.sheet](request)
    _write(options.out, frames, options.frame_ms)


def _write(out: str, frames: Frames, frame_ms: int) -> None:
    suffix = _suffix(out)
    if suffix in pictures.ANIMATIONS:
        data = pictures.animation(frames, suffix, frame_ms)
    else:
        data = pictures.png(frames[0])
    folder, _, name = out.rpartition("/")
    open_storage(folder or ("/" if out.startswith("/") else "."), RETRY_S).put(name, data)
    count = f", {len(frames)} frames" if len(frames) > 1 else ""
    print(f"{out}: {len(data) / 1e6:.2f} MB{count}")


def _suffix(out: str) -> str:
    return Path(out).suffix.lower()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service.sample",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a run.dir or a checkpoint's folder; local or s3://")
    add("sheet", nargs="?", default="grid", choices=SHEETS, metavar="SHEET",
        help=f"{', '.join(SHEETS)} (default grid)")  # fmt: skip
    add(
        "--out",
        required=True,
        help="file or s3:// object to write: .png, or .webp or .gif for animations",
    )
    add("--seed", type=int, default=0, help="of latents, noise and standing statistics (%(default)s)")
    add("--rows", type=int, default=8, help="rows; stations of a walk (default %(default)s)")
    add("--columns", type=int, default=10, help="columns where no class gives them (%(default)s)")
    add("--classes", help="labels such as 0,3,5 (default: all, up to --columns of them)")
    add("--weights", choices=WEIGHTS, default="ema", help="which copy (default %(default)s)")
    add("--resolution", type=int, help="a rung of the ladder (default: where the training was)")
    add("--truncation", type=float, help="resample z beyond this, such as 0.5 (default: never)")
    add("--psi", type=_psi, default=1.0, help="share of w's distance from its average, in all layers"
        " or, as 0.7,0.7,1, in each (stylegan; default 1)")  # fmt: skip
    add("--cutoff", type=int, help="layers from this one on are not truncated (stylegan)")
    add("--noise", choices=["on", "off"], default="on", help="per-layer noise (stylegan; %(default)s)")
    add("--steps", type=int, default=10, help="images from one end to the other (%(default)s)")
    add("--frame-ms", type=int, default=100, help="duration of a frame (default %(default)s)")
    add("--standing-batches", type=int, default=STANDING_BATCHES,
        help="batches of 64 that batch norm is measured over (default %(default)s)")  # fmt: skip
    add("--pixels", type=int, default=SHOWN_PIXELS,
        help="smaller images are enlarged to this by whole factors (default %(default)s)")  # fmt: skip
    return parser


def _psi(text: str) -> float | list[float]:
    values = [float(part) for part in text.split(",")]
    return values if len(values) > 1 else values[0]


def _check(options: argparse.Namespace) -> None:
    bounds = {
        "seed": (0, 2**31 - 1),
        "rows": (1, 1000),
        "columns": (1, 1000),
        "steps": (2, 10_000),
        "frame_ms": (10, LONGEST_FRAME_MS),
        "standing_batches": (1, 10_000),
        "pixels": (1, 4096),
    }
    check_bounds(options, bounds)
    suffix = _suffix(options.out)
    allowed = [".png"] if options.sheet not in ANIMATED else [".png", *pictures.ANIMATIONS]
    if options.sheet == "timelapse":
        allowed.remove(".png")
    if suffix not in allowed:
        raise UsageError(f"--out {options.out}: a {options.sheet} is written as {' or '.join(allowed)}")
    if options.truncation is not None and not 0 < options.truncation < math.inf:
        raise UsageError(f"--truncation {options.truncation}: give a threshold above 0, such as 0.5")
    if not np.isfinite(options.psi).all():
        raise UsageError(f"--psi {options.psi}: give a number, such as 0.7")
    if options.sheet == "truncation" and options.psi != 1.0:
        raise UsageError("--psi: a truncation sheet goes through several; leave it out")
    if options.sheet == "timelapse" and options.resolution is not None:
        raise UsageError("--resolution: a timelapse shows what the run drew; leave it out")


def _check_family(request: Request) -> None:
    options, family = request.options, request.trained.family
    if options.sheet in NEEDS_STYLES and not request.has_styles:
        raise UsageError(f"{options.sheet}: {family} has no styles; only stylegan has")
    steered = options.psi != 1.0 or options.cutoff is not None
    if steered and not request.has_styles:
        remedy = "leave them out" if family in NORMALISES_LATENTS else "use --truncation"
        raise UsageError(f"--psi, --cutoff: {family} has no w; {remedy}")
    truncated = options.truncation is not None or options.sheet == "truncation"
    if truncated and family in NORMALISES_LATENTS:
        raise UsageError(f"truncation: {family} normalises its latents, so that none lie far out")
    if options.truncation is not None and request.has_styles:
        raise UsageError("--truncation: stylegan is truncated in w; use --psi and --cutoff")
    if request.has_styles:
        layers = request.layers
        if isinstance(options.psi, list) and len(options.psi) != layers:
            raise UsageError(f"--psi: {len(options.psi)} values for {layers} layers; give one for each")
        if options.cutoff is not None and not 0 <= options.cutoff <= layers:
            raise UsageError(f"--cutoff {options.cutoff}: there are {layers} layers")


def _stage(trained: Trained, options: argparse.Namespace) -> Stage:
    if options.resolution is None:
        return trained.stage
    stage = Stage(options.resolution)
    if stage.resolution not in trained.rungs:
        raise UsageError(f"--resolution {stage.resolution}: trained so far are {trained.rungs}")
    return stage


def _classes(trained: Trained, options: argparse.Namespace) -> list[int]:
    count = trained.shape.classes
    if options.classes is None:
        return list(range(min(count or 1, options.columns)))
    if count is None:
        raise UsageError(f"--classes {options.classes}: this model has no classes; leave it out")
    try:
        chosen = [int(part) for part in options.classes.split(",")]
    except ValueError as error:
        raise UsageError(f"--classes {options.classes}: write labels as 0,3,5") from error
    outside = [label for label in chosen if not 0 <= label < count]
    if outside:
        raise UsageError(f"--classes {options.classes}: {outside} are outside 0 … {count - 1}")
    return chosen


if __name__ == "__main__":
    run_command(main)
