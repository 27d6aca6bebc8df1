"""Batches for one worker, made ahead of the step by threads that end with it."""

import logging
import queue
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.data.decode import Pixels, decode
from service.data.index import Index
from service.data.order import Order
from service.data.stream import read_samples
from service.errors import DataError, ServiceError
from service.storage import Storage

log = logging.getLogger(__name__)

BATCHES_AHEAD = 4
_POLL_S = 0.2


@dataclass(frozen=True)
class Request:
    """One worker's share of a micro-batch: global sample numbers, and the rung to decode for."""

    numbers: NDArray[np.int64]
    resolution: int


@dataclass(frozen=True)
class Batch:
    """images uint8 [n, h, w, c], labels int64 [n], and the keys' rows in the index."""

    images: Pixels
    labels: NDArray[np.int64]
    rows: NDArray[np.int64]


class Samples:
    """Samples by number, from windows that are read ahead in the background and then let go."""

    def __init__(
        self,
        storage: Storage,
        index: Index,
        order: Order,
        channels: int,
        readers: int,
        max_bad_samples: int,
    ):
        self.storage, self.index, self.order = storage, index, order
        self.channels = channels
        self.max_bad_samples = max_bad_samples
        self.bad: dict[tuple[int, int], str] = {}
        self._threads = ThreadPoolExecutor(readers, thread_name_prefix="windows")
        self._windows: dict[int, dict[tuple[int, int, int], Future[_Window]]] = {}

    def batch(self, request: Request) -> Batch:
        """Read, decode and stack the samples of a request."""
        shape = (len(request.numbers), request.resolution, request.resolution, self.channels)
        images = np.empty(shape, np.uint8)
        rows = np.empty(len(request.numbers), np.int64)
        for i, number in enumerate(request.numbers):
            images[i], rows[i] = self._sample(int(number), request.resolution)
        return Batch(images, self.index.label[rows].astype(np.int64), rows)

    def close(self) -> None:
        """Let go of the reading threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _sample(self, number: int, resolution: int) -> tuple[Pixels, int]:
        """The sample, or in place of a bad one the next good one of its window."""
        place = self.order.place(number)
        window = self._window(place.epoch, place.lane, place.window, self.order.following(place))
        size = len(window.rows)
        for step in range(size):
            i = (place.inside + step) % size
            row = int(window.rows[i])
            if (row, resolution) in self.bad:
                continue
            try:
                return decode(window.data[i], self.channels, resolution), row
            except DataError as error:
                self._count_bad(row, resolution, error)
        raise DataError(f"{self.index.describe(int(window.rows[0]))}: its whole window is bad")

    def _window(self, epoch: int, lane: int, number: int, following: tuple[int, int, int]) -> "_Window":
        """The window, with the lane's next one under way and its former ones forgotten."""
        wanted = ((epoch, lane, number), following)
        held = self._windows.setdefault(lane, {})
        for key in [key for key in held if key not in wanted]:
            del held[key]
        for key in wanted:
            if key not in held:
                held[key] = self._threads.submit(self._read, *key)
        return held[wanted[0]].result()

    def _read(self, epoch: int, lane: int, window: int) -> "_Window":
        rows = self.order.window_rows(epoch, lane, window)
        return _Window(rows, read_samples(self.storage, self.index, rows))

    def _count_bad(self, row: int, resolution: int, error: DataError) -> None:
        """Note it for this rung alone: what another rung shows may not depend on the past."""
        what = self.bad[row, resolution] = f"{self.index.describe(row)}: {error}"
        log.warning("event=bad_sample count=%d what=%s", len(self.bad), what)
        if len(self.bad) > self.max_bad_samples:
            raise DataError(
                f"{len(self.bad)} bad samples, data.max_bad_samples is {self.max_bad_samples}; the"
                f" last is {what}. Raise the limit, or mend the data and start a new run"
            )


@dataclass(frozen=True)
class _Window:
    rows: NDArray[np.int64]
    data: list[bytes]


class Loader:
    """Iterates over the batches of `requests`, up to `BATCHES_AHEAD` made before they are asked for.

    `waited_s` adds up the time that the training stood still for data. Errors of the making thread
    are raised where the batch is asked for. Use as a context manager.
    """

    def __init__(self, samples: Samples, requests: Iterable[Request]):
        self.samples = samples
        self.waited_s = 0.0
        self._ready: queue.Queue[Batch | ServiceError | Exception | None] = queue.Queue(BATCHES_AHEAD)
        self._stop = threading.Event()
        self._maker = threading.Thread(target=self._make, args=(requests,), name="batches", daemon=True)
        self._maker.start()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self.samples.close()
        self._maker.join()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        start = time.perf_counter()
        item = self._ready.get()
        self.waited_s += time.perf_counter() - start
        if item is None:
            raise StopIteration
        if isinstance(item, Exception):
            raise item
        return item

    def _make(self, requests: Iterable[Request]) -> None:
        try:
            for request in requests:
                if not self._offer(self.samples.batch(request)):
                    return
            self._offer(None)
        except Exception as error:  # handed over: the training thread raises it
            self._offer(error)

    def _offer(self, item: Batch | Exception | None) -> bool:
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=_POLL_S)
                return True
            except queue.Full:
                continue
        return False


def check_prefetch(index: Index, order: Order, workers: int, prefetch_bytes: int) -> None:
    """DataError where a worker's windows, two a lane, would not fit in `prefetch_bytes`."""
    mean_size = float(index.size.mean())
    needed = int(2 * order.window * (order.lanes // workers) * mean_size)
    if needed > prefetch_bytes:
        raise DataError(
            f"data.prefetch_bytes: {prefetch_bytes}, but 2 windows of {order.window} samples of"
            f" {mean_size:.0f} bytes on {order.lanes // workers} lanes take {needed}; lower"
            " data.window or data.lanes, raise the limit, or take more workers"
        )
