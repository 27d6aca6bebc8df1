"""Samples by number, decoded: what a run asks for, where it comes from, and what was bad in it."""

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.data.cache import Cache
from service.data.decode import Pixels, decode
from service.data.index import Index
from service.data.order import Order
from service.data.stream import Stream, Window, WindowReader
from service.data.tar import NO_LABEL
from service.errors import DataError
from service.storage import TIMEOUT_S, open_storage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """One worker's share of a micro-batch: global sample numbers, and the rung to decode for.

    `mirrored` tells which images are flipped from left to right; None flips none.
    """

    numbers: NDArray[np.int64]
    resolution: int
    mirrored: NDArray[np.bool_] | None = None

    def take(self, places: NDArray[np.intp]) -> "Request":
        """The part of the request at these places in it."""
        mirrored = None if self.mirrored is None else self.mirrored[places]
        return Request(self.numbers[places], self.resolution, mirrored)


@dataclass(frozen=True)
class Batch:
    """images uint8 [n, h, w, c], labels int64 [n], and the keys' rows in the index."""

    images: Pixels
    labels: NDArray[np.int64]
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class Source:
    """Samples in an order, and how they are read: plain values, which travel to other processes.

    `labelled` makes a sample without a label a bad one. Channels are 1 or 3.
    """

    address: str
    index: Index
    order: Order
    channels: int
    labelled: bool = False
    max_bad_samples: int = 0
    readers: int = 4
    retry_s: float = 0.0
    timeout_s: float = TIMEOUT_S
    cache_dir: str | None = None
    cache_bytes: int = 0

    def open_reader(self) -> WindowReader:
        """What reads the windows, in this process."""
        storage = open_storage(self.address, self.retry_s, self.timeout_s)
        cache = Cache(self.cache_dir, self.cache_bytes) if self.cache_dir else None
        return WindowReader(storage, self.index, self.order, self.readers, cache)

    def labels(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The samples' labels."""
        return self.index.label[rows].astype(np.int64)


class BadWindow(Exception):
    """Not one sample of a window can be shown; the argument is its first row."""


class Samples:
    """Decodes samples from the windows of a stream. `unlabelled` rows, in order, are bad ones.

    `bad` tells of each row that failed at a resolution what was wrong.
    """

    def __init__(self, stream: Stream, unlabelled: NDArray[np.int64]):
        self.bad: dict[tuple[int, int], str] = {}
        self._stream = stream
        self._unlabelled = frozenset(unlabelled.tolist())

    def fill(self, request: Request, images: Pixels, places: NDArray[np.intp]) -> NDArray[np.int64]:
        """Put the samples of a request at these places of uint8 [n, h, w, c]; returns their rows."""
        rows = np.empty(len(places), np.int64)
        found = self._stream.order.places(request.numbers)
        for i, window in enumerate(self._stream.windows(found)):
            image = images[places[i]]
            rows[i] = self._decode(window, found[i].inside, image)
            if request.mirrored is not None and request.mirrored[i]:
                image[:] = image[:, ::-1].copy()
        return rows

    def _decode(self, window: Window, inside: int, out: Pixels) -> int:
        """Fill `out` with the sample, or in its place the next good one of its window; its row."""
        size, resolution = len(window.rows), len(out)
        for step in range(size):
            i = (inside + step) % size
            row = window.rows[i]
            if self.bad and (row, resolution) in self.bad:
                continue
            try:
                if self._unlabelled and row in self._unlabelled:
                    raise DataError("no label, or one that is not a number")
                decode(window.image(i), out)
                return row
            except DataError as error:
                # Of this rung alone: what another rung shows may not depend on the past.
                self.bad[row, resolution] = str(error)
        raise BadWindow(window.rows[0])


class BadSamples:
    """The bad samples of a run so far, told once each, and the limit to them."""

    def __init__(self, source: Source):
        self._source = source
        self._rows: set[int] = set()

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, found: dict[tuple[int, int], str]) -> None:
        """Take note of some; DataError past the limit."""
        for (row, _), error in found.items():
            self._rows.add(row)
            what = f"{self._source.index.describe(row)}: {error}"
            log.warning("event=bad_sample count=%d what=%s", len(self), what)
            check_bad_samples(len(self), self._source.max_bad_samples, what)

    def whole_window(self, error: BadWindow) -> DataError:
        """What to raise where a window has no good sample at all."""
        return DataError(f"{self._source.index.describe(error.args[0])}: its whole window is bad")


def check_bad_samples(count: int, limit: int, last: str) -> None:
    """DataError where more samples are bad than the user allows."""
    if count > limit:
        raise DataError(
            f"{count} bad samples, data.max_bad_samples is {limit}; the last is {last}."
            " Raise the limit, or mend the data and start a new run"
        )


def unlabelled(source: Source) -> NDArray[np.int64]:
    """Rows that are bad for want of a label."""
    return np.flatnonzero(source.index.label == NO_LABEL) if source.labelled else np.empty(0, np.int64)


def read(source: Source, request: Request) -> Batch:
    """The samples of a request, read and decoded here and now."""
    shape = (len(request.numbers), request.resolution, request.resolution, source.channels)
    images = np.empty(shape, np.uint8)
    reader, bad = source.open_reader(), BadSamples(source)
    samples = Samples(Stream(source.order, reader.ask), unlabelled(source))
    try:
        rows = samples.fill(request, images, np.arange(len(images)))
    except BadWindow as error:
        raise bad.whole_window(error) from error
    finally:
        reader.close()
        bad.add(samples.bad)
    return Batch(images, source.labels(rows), rows)
