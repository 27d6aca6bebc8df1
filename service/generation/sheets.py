"""Sheets and animations of what a generator draws. Equal arguments give equal pixels."""

import io
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from models import Stage
from service.engine.curriculum import curriculum_of
from service.engine.sampler import Sampler, Truncation
from service.errors import DataError
from service.generation.look import Look, SheetName
from service.metrics.path_length import slerp
from service.random.draws import Draws
from service.recording import pictures
from service.recording.pictures import Pixels
from service.run.best import RETRY_S, Trained
from service.storage import open_storage

THRESHOLDS = (2.0, 1.5, 1.0, 0.5, 0.04)
PSIS = (1.0, 0.7, 0.5, 0.0, -0.5, -1.0)
NOISE_DRAWS = 4


@dataclass(frozen=True)
class Inputs:
    """Inputs of a generator for a set of images, row by row."""

    latents: NDArray[np.float64]
    labels: NDArray[np.int64]
    noise_seeds: list[int]


@dataclass(frozen=True)
class Subject:
    """What a sheet shows, and how: the generator, the stage, the labels to draw in turn, the look."""

    trained: Trained
    look: Look
    stage: Stage
    labels: list[int]

    @property
    def has_styles(self) -> bool:
        """Whether the family is steered by styles."""
        return self.trained.shape.has_styles

    @property
    def layers(self) -> int:
        """How many layers take a style at the stage; 0 for families without styles."""
        return self.trained.generator.layer_count(self.stage) if self.has_styles else 0

    def sampler(self, truncation: float | None = None) -> Sampler:
        """The generator, ready to draw; batch norm's statistics are measured within `truncation`."""
        return Sampler(
            self.trained.generator,
            self.trained.shape,
            self.stage,
            self.look.seed,
            truncation,
            self.look.standing_batches,
        )

    def inputs(self, count: int, truncation: float | None = None, first: int = 0) -> Inputs:
        """Inputs for `count` images from number `first`, with the labels in turn.

        Truncation shrinks the same latents.
        """
        draws = Draws(self.look.seed, "sample", 0)
        numbers = np.arange(first, first + count)
        return Inputs(
            draws.truncated(numbers, self.trained.shape.latents, truncation),
            np.array(self.labels)[numbers % len(self.labels)],
            draws.seeds(numbers, "noise"),
        )

    def draw(self, sampler: Sampler, inputs: Inputs, psi: float | Sequence[float]) -> Pixels:
        """uint8 [n, r, r, c], with noise unless it is off."""
        seeds = inputs.noise_seeds if self.look.noise else None
        return sampler.draw(inputs.latents, inputs.labels, psi, self.look.cutoff, seeds)

    def grid(self, images: Pixels, columns: int) -> Pixels:
        """The images as one sheet, small ones enlarged."""
        return pictures.grid(images, columns, self.look.pixels)


Frames = list[Pixels]


def draw_grid(subject: Subject) -> Frames:
    """Images of each class, one class a column; without classes, `look.columns` columns."""
    look, trained = subject.look, subject.trained
    columns = len(subject.labels) if trained.shape.classes else look.columns
    inputs = subject.inputs(columns * look.rows, look.truncation)
    images = subject.draw(subject.sampler(look.truncation), inputs, look.psi)
    sheet = subject.grid(images, columns)
    names = [trained.name_of(label) for label in subject.labels]
    return [pictures.headed(sheet, names) if any(names) else sheet]


def draw_truncation(subject: Subject) -> Frames:
    """The same images, a row each, at every threshold of |z| (BigGAN and kin) or psi of w (StyleGAN)."""
    if subject.has_styles:
        truncations = [Truncation(psi=psi) for psi in PSIS]
        captions = [f"psi {psi:g}" for psi in PSIS]
    else:
        truncations = [Truncation(threshold) for threshold in (None, *THRESHOLDS)]
        captions = ["all z", *(f"|z|<{threshold:g}" for threshold in THRESHOLDS)]
    columns = [draw_truncated(subject, subject.look.rows, truncation) for truncation in truncations]
    images = np.stack(columns, axis=1).reshape(-1, *columns[0].shape[1:])
    return [pictures.labelled(subject.grid(images, len(columns)), captions)]


def draw_truncated(subject: Subject, count: int, truncation: Truncation) -> Pixels:
    """The first images uint8 [count, r, r, c], the same latents whatever the truncation."""
    inputs = subject.inputs(count, truncation.threshold)
    return subject.draw(subject.sampler(truncation.threshold), inputs, truncation.psi)


def draw_interpolation(subject: Subject) -> Frames:
    """From one image to the next: one pair a row, or an animated walk through all images."""
    look = subject.look
    inputs = subject.inputs(look.rows if look.animated else 2 * look.rows, look.truncation)
    sampler = subject.sampler(look.truncation)
    count = len(inputs.latents)
    # a walk returns to where it began; a sheet has a pair a row
    pairs = (
        [(i, (i + 1) % count) for i in range(count)]
        if look.animated
        else [(i, i + 1) for i in range(0, count, 2)]
    )
    shares = np.linspace(0, 1, look.steps, endpoint=not look.animated)
    paths = [_path(subject, sampler, inputs, pair, shares) for pair in tqdm(pairs, disable=None)]
    images = np.concatenate(paths)
    if look.animated:
        return [subject.grid(image[None], 1) for image in images]
    return [subject.grid(images, look.steps)]


def _path(
    subject: Subject,
    sampler: Sampler,
    inputs: Inputs,
    pair: tuple[int, int],
    shares: NDArray[np.float64],
) -> Pixels:
    """uint8 [shares, r, r, c] between two images: styles follow a line, latents an arc.

    The class is that of the nearer end, because labels do not blend.
    """
    look, ends = subject.look, list(pair)
    first, last = pair
    if subject.has_styles:
        start, end = sampler.styles(inputs.latents[ends], inputs.labels[ends], look.psi, look.cutoff)
        styles = torch.stack([torch.lerp(start, end, share) for share in shares])
        noise = [inputs.noise_seeds[0]] * len(shares) if look.noise else None
        return sampler.paint(styles, noise)
    start, end = (torch.from_numpy(inputs.latents[[i]]).expand(len(shares), -1) for i in pair)
    latents = slerp(start, end, torch.from_numpy(shares)).numpy()
    return sampler.draw(latents, np.where(shares < 0.5, inputs.labels[first], inputs.labels[last]))


def draw_mixing(subject: Subject) -> Frames:
    """Sources along the top and the left; inside, the left's styles with some layers of the top's.

    Three blocks of rows: coarse, middle or fine layers come from the column's source (Karras et al.
    2019, figure 3).
    """
    look = subject.look
    sampler = subject.sampler()
    groups = _style_groups(subject.layers)
    columns = look.columns
    inputs = subject.inputs(columns + len(groups) * look.rows)
    styles = sampler.styles(inputs.latents, inputs.labels, look.psi, look.cutoff)
    tops, lefts = styles[:columns], styles[columns:]
    rows = [torch.cat([tops.mean(0, keepdim=True), tops])]
    captions = [""]
    for i, (name, chosen) in enumerate(groups.items()):
        for left in lefts[i * look.rows : (i + 1) * look.rows]:
            mixed = left.expand_as(tops).clone()
            mixed[:, chosen] = tops[:, chosen]
            rows.append(torch.cat([left[None], mixed]))
            captions.append(name)
    noise = [inputs.noise_seeds[0]] * (len(rows) * (columns + 1)) if look.noise else None
    images = sampler.paint(torch.cat(rows), noise)
    images[0] = 0  # the corner belongs to no source
    return [pictures.labelled(subject.grid(images, columns + 1), rows=captions)]


def _style_groups(layers: int) -> dict[str, slice]:
    """Coarse, middle and fine layers: the paper's split from 64 px up, else the last two resolutions."""
    resolutions = layers // 2
    middle, fine = (2, 4) if resolutions > 4 else (max(1, resolutions - 2), max(1, resolutions - 1))
    bounds = [0, 2 * middle, 2 * fine, layers]
    names = ("coarse", "middle", "fine")
    return {
        name: slice(first, last)
        for name, (first, last) in zip(names, itertools.pairwise(bounds), strict=True)
        if last > first
    }


def draw_noise(subject: Subject) -> Frames:
    """One image a row: without noise, with several draws of noise, and how much these differ."""
    look = subject.look
    sampler = subject.sampler()
    inputs = subject.inputs(look.rows)
    styles = sampler.styles(inputs.latents, inputs.labels, look.psi, look.cutoff)
    draws = Draws(look.seed, "noise sheet", 0)
    drawn = [
        sampler.paint(styles, draws.seeds(np.arange(look.rows) + i * look.rows, "noise"))
        for i in range(NOISE_DRAWS)
    ]
    deviation = np.stack(drawn).astype(np.float64).std(0)
    shown = (deviation * (255 / max(deviation.max(), 1e-9))).astype(np.uint8)
    columns = [sampler.paint(styles), *drawn, shown]
    images = np.stack(columns, axis=1).reshape(-1, *shown.shape[1:])
    captions = ["no noise", *(f"draw {i + 1}" for i in range(NOISE_DRAWS)), "deviation"]
    return [pictures.labelled(subject.grid(images, len(columns)), captions)]


def draw_timelapse(subject: Subject) -> Frames:
    """The run's panel of fixed latents at every interval, with clock and stage above each."""
    trained = subject.trained
    address = trained.address.rpartition("/checkpoints/")[0]
    storage = open_storage(address, RETRY_S)
    curriculum = curriculum_of(trained.config, trained.amendments)
    grids = pictures.latest_grids(storage.sizes(f"{pictures.FOLDER}/"))
    if not grids:
        raise DataError(
            f"{address}/{pictures.FOLDER}: no grids there; if the run was copied, copy this folder too"
        )
    frames = []
    for clock, key in tqdm(grids, disable=None):
        if clock > trained.clock:
            break
        try:
            stage = curriculum.before(clock).stage
        except ValueError as error:
            raise DataError(
                f"{storage.url(key)}: its clock is not one of this run's; delete it"
            ) from error
        fading = f", alpha {stage.alpha:.2f}" if stage.fading else ""
        caption = f"{clock:,} images, {stage.resolution} px{fading}"
        sheet = _read_png(storage.get(key), storage.url(key))
        frames.append(pictures.labelled(sheet, [caption]))
    if not frames:
        raise DataError(f"{address}/{pictures.FOLDER}: all its grids are later than {trained.address}")
    height, width = (max(frame.shape[axis] for frame in frames) for axis in (0, 1))
    return [_pad(frame, height, width) for frame in frames]


def _read_png(data: bytes, address: str) -> Pixels:
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.asarray(image)
    except OSError as error:
        raise DataError(
            f"{address}: not a picture ({error}); delete it, the other grids are enough"
        ) from error
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _pad(frame: Pixels, height: int, width: int) -> Pixels:
    return np.pad(frame, ((0, height - frame.shape[0]), (0, width - frame.shape[1]), (0, 0)))


SHEETS: dict[SheetName, Callable[[Subject], Frames]] = {
    "grid": draw_grid,
    "truncation": draw_truncation,
    "interpolation": draw_interpolation,
    "timelapse": draw_timelapse,
    "mixing": draw_mixing,
    "noise": draw_noise,
}
