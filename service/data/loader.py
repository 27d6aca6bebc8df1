"""Batches for one worker, in the order that is asked for, each begun before it is needed."""

import time
from collections import deque
from collections.abc import Iterable, Iterator

from service.data.feeder import Feeders, Ticket
from service.data.samples import Batch, Request, Source
from service.errors import DataError

BATCHES_AHEAD = 4


class Loader:
    """Iterates over the batches of `requests`, with `BATCHES_AHEAD` under way.

    A batch's images are overwritten once the next batch is taken: copy what is to be kept longer.
    `waited_s` adds up the time that the training stood still for data. Use as a context manager: what
    is under way at its end is let go of, and the feeders are ready for another loader.
    """

    def __init__(self, feeders: Feeders, requests: Iterable[Request]):
        self.feeders = feeders
        self.waited_s = 0.0
        self._requests = iter(requests)
        self._under_way: deque[Ticket] = deque()
        for _ in range(BATCHES_AHEAD):
            self._start_next()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        while self._under_way and not failed:
            self.feeders.receive(self._under_way.popleft())

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if not self._under_way:
            raise StopIteration
        start = time.perf_counter()
        self._start_next()  # in the place of the batch that was taken before
        batch = self.feeders.receive(self._under_way.popleft())
        self.waited_s += time.perf_counter() - start
        return batch

    def _start_next(self) -> None:
        request = next(self._requests, None)
        if request is not None:
            self._under_way.append(self.feeders.start(request))


def read_ahead(source: Source, workers: int, batch: int, image_bytes: int) -> tuple[int, int]:
    """Most bytes that one of `workers` holds in windows, and in decoded batches.

    That is two windows a lane and those that batches under way still need, and the batches
    themselves: `batch` images over all workers, of `image_bytes` once decoded.
    """
    order = source.order
    lanes, share = order.lanes // workers, -(-batch // workers)
    windows = 2 + 2 * share // (lanes * order.window)
    encoded = sum(source.index.shards.values()) / len(order.rows)
    decoded = (BATCHES_AHEAD + 1) * share * image_bytes  # one is trained on
    return int(windows * order.window * lanes * encoded), decoded


def check_prefetch(
    source: Source, workers: int, prefetch_bytes: int, batch: int, image_bytes: int
) -> None:
    """DataError where what a worker reads ahead would not fit in `prefetch_bytes`."""
    windows, decoded = read_ahead(source, workers, batch, image_bytes)
    if windows + decoded > prefetch_bytes:
        order = source.order
        raise DataError(
            f"data.prefetch_bytes: {prefetch_bytes}, but windows of {order.window} samples on"
            f" {order.lanes // workers} lanes take {windows}, and {BATCHES_AHEAD + 1} batches of"
            f" {-(-batch // workers)} decoded images {decoded}; lower data.window or data.lanes, raise"
            " the limit, or take more workers"
        )
