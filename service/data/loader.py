"""Batches for one worker, in the order of requests, each started before it is needed."""

import time
from collections import deque
from collections.abc import Iterable, Iterator

from service.data.dataset import Batch, Dataset, Request
from service.data.feeder import Feeders, Ticket
from service.errors import DataError

BATCHES_AHEAD = 4


class Loader:
    """Iterates over the batches of `requests`, with `BATCHES_AHEAD` under way.

    A batch's images are overwritten once the next batch is taken: copy them to keep them longer.
    `waited_s` adds up the time that the training waited for data. Use as a context manager: at its end,
    batches under way are dropped, and the feeders are ready for another loader.
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
        self._start_next()  # takes the place of the batch that was taken before
        batch = self.feeders.receive(self._under_way.popleft())
        self.waited_s += time.perf_counter() - start
        return batch

    def _start_next(self) -> None:
        request = next(self._requests, None)
        if request is not None:
            self._under_way.append(self.feeders.start(request))


def read_ahead(dataset: Dataset, workers: int, batch: int, image_bytes: int) -> tuple[int, int]:
    """The most bytes that one of `workers` holds: in windows, and in decoded batches.

    It holds two windows a lane, those that batches under way still need, and the batches: `batch` images
    over all workers, of `image_bytes` each once decoded.
    """
    order = dataset.order
    lanes, share = order.lanes // workers, -(-batch // workers)
    windows = 2 + 2 * share // (lanes * order.window)
    encoded = sum(dataset.index.shards.values()) / len(order.rows)
    decoded = (BATCHES_AHEAD + 1) * share * image_bytes  # one is being trained on
    return int(windows * order.window * lanes * encoded), decoded


def check_prefetch(
    dataset: Dataset, workers: int, prefetch_bytes: int, batch: int, image_bytes: int
) -> None:
    """DataError if what a worker reads ahead does not fit in `prefetch_bytes`."""
    windows, decoded = read_ahead(dataset, workers, batch, image_bytes)
    if windows + decoded > prefetch_bytes:
        order = dataset.order
        raise DataError(
            f"data.prefetch_bytes: {prefetch_bytes}, but windows of {order.window} samples on"
            f" {order.lanes // workers} lanes take {windows}, and {BATCHES_AHEAD + 1} batches of"
            f" {-(-batch // workers)} decoded images take {decoded}; lower data.window or data.lanes,"
            " raise the limit, or use more workers"
        )
