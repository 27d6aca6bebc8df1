"""Separate images in bulk. Seed and number decide an image, whatever is drawn beside it."""

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from tqdm import tqdm

from service.data.packing import made_ahead
from service.engine.sampler import BATCH
from service.generation.destinations import ImageSet
from service.generation.sheets import Subject
from service.recording.pictures import Pixels

PORTION_PIXELS = 1 << 17
"""Pixels that go through the network together, on one core: 64 images of 32 px, 8 of 128 px."""


class Portions:
    """Draws portions of the images: portion p begins with image p × `size`.

    The last bit of a sum may depend on how many images go through a network together, and on how many
    cores share it. So an image is always drawn at the same place of the same portion, even if only a
    part of the portion is wanted, and a portion by one core.
    """

    def __init__(self, subject: Subject):
        self.size = portion_size(subject.stage.resolution)
        self._subject = subject
        self._sampler = subject.sampler(subject.look.truncation)

    def draw(self, portion: int) -> Pixels:
        """uint8 [size, r, r, c]."""
        look = self._subject.look
        inputs = self._subject.inputs(self.size, look.truncation, first=portion * self.size)
        return self._subject.draw(self._sampler, inputs, look.psi)


def portion_size(resolution: int) -> int:
    """How many images of this resolution are drawn together."""
    return max(1, min(BATCH, PORTION_PIXELS // resolution**2))


def image_set(subject: Subject, first: int, count: int) -> ImageSet:
    """The set of `count` images from number `first`."""
    trained = subject.trained
    return ImageSet(
        first=first,
        count=count,
        side=subject.stage.resolution,
        channels=trained.config.model.channels,
        labels=tuple(subject.labels),
        conditional=trained.shape.classes is not None,
        classes=trained.classes,
        source=trained.address,
    )


def on_threads(portions: Portions, chosen: range) -> Iterator[Pixels]:
    """The chosen portions, drawn by a thread on each core of this process."""
    with _one_core_each() as cores, ThreadPoolExecutor(cores, thread_name_prefix="draw") as threads:
        yield from made_ahead(portions.draw, chosen, threads, cores)


Spread = Callable[[Portions, range], Iterator[Pixels]]
"""Draws the chosen portions, in turn."""


def draw_images(
    subject: Subject, images: ImageSet, spread: Spread = on_threads
) -> Generator[tuple[int, Pixels], None, None]:
    """The images of the set with their numbers, in turn; shows progress on a terminal."""
    with _one_core_each():  # as the portions are drawn, so the standing statistics are measured
        portions = Portions(subject)
    end = images.first + images.count
    chosen = range(images.first // portions.size, -(-end // portions.size))
    drawn = itertools.chain.from_iterable(spread(portions, chosen))
    before = images.first - chosen.start * portions.size
    wanted = itertools.islice(drawn, before, before + images.count)
    numbered = enumerate(wanted, images.first)
    yield from tqdm(numbered, "drawing", images.count, unit=" images", disable=None)


@contextlib.contextmanager
def _one_core_each() -> Iterator[int]:
    """Let torch compute on one core in each thread; yields how many cores it may use in all."""
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield cores
    finally:
        torch.set_num_threads(cores)
