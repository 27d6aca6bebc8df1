"""Samples by number, decoded: requests, where the samples come from, and which of them are bad."""

import contextlib
import logging
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.data.cache import Cache
from service.data.decode import Pixels, decode
from service.data.index import Index
from service.data.order import Order, WindowKey
from service.data.stream import Stream, Window, WindowReader
from service.data.tar import NO_LABEL
from service.errors import DataError
from service.storage import TIMEOUT_S, open_storage

log = logging.getLogger(__name__)

_LANES_TIMED, _TIMED_S = 4, 0.5


@dataclass(frozen=True)
class Request:
    """One worker's share of a batch: global sample numbers, and the resolution to decode to.

    `mirrored` says which images are flipped from left to right; None flips none. `clock` is the training
    step's clock.
    """

    numbers: NDArray[np.int64]
    resolution: int
    mirrored: NDArray[np.bool_] | None = None
    clock: int = 0

    def take(self, places: NDArray[np.intp]) -> "Request":
        """The part of the request at these places in it."""
        mirrored = None if self.mirrored is None else self.mirrored[places]
        return Request(self.numbers[places], self.resolution, mirrored, self.clock)


@dataclass(frozen=True)
class Batch:
    """Images uint8 [n, h, w, c], labels int64 [n], their rows in the index, and the step's clock."""

    images: Pixels
    labels: NDArray[np.int64]
    rows: NDArray[np.int64]
    clock: int = 0


@dataclass(frozen=True)
class Dataset:
    """Samples in an order, and how to read them: plain values, which travel to other processes.

    With `labelled`, samples without a label are bad. Channels are 1 or 3.
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
        """A reader of windows in this process."""
        storage = open_storage(self.address, self.retry_s, self.timeout_s)
        cache = Cache(self.cache_dir, self.cache_bytes) if self.cache_dir else None
        return WindowReader(storage, self.index, self.order, self.readers, cache)

    def labels(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The samples' labels."""
        return self.index.label[rows].astype(np.int64)


class BadWindow(Exception):
    """No sample of a window can be shown; the argument is its first row."""


class Samples:
    """Decodes samples from the windows of a stream. The `unlabelled` rows are bad ones.

    `bad` maps each failed row and resolution to what was wrong; `tried` counts all that were decoded.
    """

    def __init__(self, stream: Stream, unlabelled: NDArray[np.int64]):
        self.bad: dict[tuple[int, int], str] = {}
        self.tried = 0
        self._stream = stream
        self._unlabelled = frozenset(unlabelled.tolist())

    def fill(self, request: Request, images: Pixels, places: NDArray[np.intp]) -> NDArray[np.int64]:
        """Write the samples of a request to these places of uint8 [n, h, w, c]; returns their rows."""
        rows = np.empty(len(places), np.int64)
        sources = self._stream.order.places(request.numbers)
        for i, window in enumerate(self._stream.windows(sources)):
            image = images[places[i]]
            rows[i] = self._decode(window, sources[i].inside, image)
            if request.mirrored is not None and request.mirrored[i]:
                image[:] = image[:, ::-1].copy()
        return rows

    def _decode(self, window: Window, inside: int, out: Pixels) -> int:
        """Fill `out` with the sample, or with the next good one of its window; returns the row shown."""
        size, resolution = len(window.rows), len(out)
        for step in range(size):
            i = (inside + step) % size
            row = window.rows[i]
            if self.bad and (row, resolution) in self.bad:
                continue
            self.tried += 1
            try:
                if self._unlabelled and row in self._unlabelled:
                    raise DataError("its label is missing or not a number")
                decode(window.image(i), out)
                return row
            except DataError as error:
                # At this resolution only: what others show must not depend on past failures.
                self.bad[row, resolution] = str(error)
        raise BadWindow(window.rows[0])


class BadSamples:
    """The bad samples of a run so far, each logged once, and their limit."""

    def __init__(self, dataset: Dataset):
        self._dataset = dataset
        self._rows: set[int] = set()

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, bad: dict[tuple[int, int], str]) -> None:
        """Add bad samples; DataError past the limit."""
        for (row, _), error in bad.items():
            self._rows.add(row)
            what = f"{self._dataset.index.describe(row)}: {error}"
            log.warning("event=bad_sample count=%d what=%s", len(self), what)
            check_bad_samples(len(self), self._dataset.max_bad_samples, what)

    def whole_window(self, error: BadWindow) -> DataError:
        """The error to raise if a window has no good sample at all."""
        return DataError(
            f"{self._dataset.index.describe(error.args[0])}: every sample in its window is bad"
        )


def check_bad_samples(count: int, limit: int, last: str) -> None:
    """DataError if more samples are bad than the user allows."""
    if count > limit:
        raise DataError(
            f"{count} bad samples, but data.max_bad_samples is {limit}; the last is {last}."
            " Raise the limit, or repair the data and start a new run"
        )


def unlabelled(dataset: Dataset) -> NDArray[np.int64]:
    """Rows that are bad because they have no label."""
    return np.flatnonzero(dataset.index.label == NO_LABEL) if dataset.labelled else np.empty(0, np.int64)


def decoding_rate(dataset: Dataset, resolution: int) -> float:
    """Images that one process here decodes in a second, measured on those shown first.

    They are the first window of each of some lanes, once, or again until half a second is over.
    """
    order, reader = dataset.order, dataset.open_reader()
    keys = [WindowKey(0, lane, 0) for lane in range(min(order.lanes, _LANES_TIMED))]
    try:
        windows = [read.result() for read in [reader.ask(key) for key in keys]]
    finally:
        reader.close()
    encoded = [window.image(i) for window in windows for i in range(len(window.rows))]
    out = np.empty((resolution, resolution, dataset.channels), np.uint8)
    start, done = time.perf_counter(), 0
    while (seconds := time.perf_counter() - start) < _TIMED_S:
        with contextlib.suppress(DataError):
            decode(encoded[done % len(encoded)], out)
        done += 1
    return done / seconds


def read(dataset: Dataset, request: Request) -> Batch:
    """The samples of a request, read and decoded in this process."""
    shape = (len(request.numbers), request.resolution, request.resolution, dataset.channels)
    images = np.empty(shape, np.uint8)
    reader, bad = dataset.open_reader(), BadSamples(dataset)
    samples = Samples(Stream(dataset.order, reader.ask), unlabelled(dataset))
    try:
        rows = samples.fill(request, images, np.arange(len(images)))
    except BadWindow as error:
        raise bad.whole_window(error) from error
    finally:
        reader.close()
        bad.add(samples.bad)
    return Batch(images, dataset.labels(rows), rows, request.clock)
