"""Reads the bytes of samples, window by window and ahead of need, in threads."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.data.cache import Cache, CachedShards
from service.data.index import REMEDY, Index
from service.data.order import Order, Place, WindowKey
from service.errors import DataError
from service.storage import ChangedError, MissingError, Storage

# Bytes between two samples are read rather than skipped if they are no more than this, or than two
# samples: another request would take as long.
READ_OVER_BYTES = 1 << 20
# The part of a window over which lanes ask for their next one; the rest is time to read the last.
_SPREAD = 0.75
_GOLDEN = 0.6180339887498949


class Shards(Protocol):
    """A source of shards: a storage, or a cache in front of it."""

    def get(self, key: str, start: int = 0, length: int | None = None, etag: str = "") -> bytes:
        """`length` bytes of the shard from `start`, fewer at its end."""

    def url(self, key: str) -> str:
        """The address of a shard, for people."""


@dataclass(frozen=True)
class Window:
    """A window's index rows in the order in which they are shown, and the bytes that were read for them.

    `spans` says for each row which of the `blobs` holds its image, where it begins, and its bytes.
    `memory` owns the blobs' memory for as long as the window lives.
    """

    rows: list[int]
    spans: list[tuple[int, int, int]]
    blobs: Sequence[bytes | bytearray | memoryview]
    memory: object = None

    def image(self, i: int) -> memoryview:
        """The encoded image of the i-th row."""
        blob, begin, size = self.spans[i]
        return memoryview(self.blobs[blob])[begin : begin + size]


def read_window(shards: Shards, index: Index, rows: NDArray[np.int64]) -> Window:
    """The encoded images of these rows; DataError if a shard is not as indexed.

    Rows of a shard are read in one request if they lie close together, as those of a window do.
    """
    order = np.argsort(rows, kind="stable")
    spans = [(0, 0, 0)] * len(rows)
    blobs: list[bytes] = []
    for group in _neighbours(index, rows[order], order):
        offsets, sizes = index.offset[rows[group]], index.size[rows[group]]
        start, end = int(offsets[0]), int(offsets[-1] + sizes[-1])
        places = zip(group.tolist(), (offsets - start).tolist(), sizes.tolist(), strict=True)
        for place, begin, size in places:
            spans[place] = (len(blobs), begin, size)
        blobs.append(_read(shards, index, int(index.shard[rows[group[0]]]), start, end))
    return Window(rows.tolist(), spans, blobs)


def read_samples(shards: Shards, index: Index, rows: NDArray[np.int64]) -> list[memoryview]:
    """The encoded images of any rows, in their order."""
    window = read_window(shards, index, rows)
    return [window.image(i) for i in range(len(rows))]


def _neighbours(
    index: Index, rows: NDArray[np.int64], order: NDArray[np.intp]
) -> Sequence[NDArray[np.intp]]:
    """`order` of the sorted rows, cut where the shard changes or the gap is too large."""
    gaps = index.offset[rows[1:]] - index.offset[rows[:-1]] - index.size[rows[:-1]]
    far = gaps > max(READ_OVER_BYTES, 2 * int(index.size[rows].max(initial=0)))
    return np.split(order, np.flatnonzero(far | (np.diff(index.shard[rows]) != 0)) + 1)


def _read(shards: Shards, index: Index, shard: int, start: int, end: int) -> bytes:
    name = index.names[shard]
    try:
        data = shards.get(name, start, end - start, etag=index.etags.get(name, ""))
    except MissingError as error:
        raise DataError(f"{error}, but it is in the index; copy it again or pack again") from error
    except ChangedError as error:
        raise DataError(f"{error}: changed since the index was made; {REMEDY}") from error
    if len(data) != end - start:
        raise DataError(
            f"{shards.url(name)}: expected bytes {start} to {end}, read {len(data)} bytes: the shard"
            " is cut short; copy it again or pack again"
        )
    return data


class WindowReader:
    """Reads windows in the background, many at a time; `close` closes its storage too."""

    def __init__(
        self, storage: Storage, index: Index, order: Order, threads: int, cache: Cache | None = None
    ):
        self._storage, self._index, self._order, self._cache = storage, index, order, cache
        self._shards: Shards = CachedShards(storage, index, cache) if cache else storage
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="windows")

    def ask(self, key: WindowKey) -> Future[Window]:
        """Begin to read a window."""
        return self._threads.submit(self._read, key)

    def counts(self) -> dict[str, int]:
        """Counts of what was read since this reader was opened."""
        traffic, cache = self._storage.traffic, self._cache
        return {
            "data_requests": traffic.requests,
            "data_bytes": traffic.bytes,
            "data_retries": traffic.retries,
            "cache_hits": cache.hits if cache else 0,
            "cache_misses": cache.misses if cache else 0,
        }

    def close(self) -> None:
        """End the threads and their retries."""
        self._storage.close()
        self._threads.shutdown(cancel_futures=True)

    def _read(self, key: WindowKey) -> Window:
        return read_window(self._shards, self._index, self._order.window_rows(key))


class Reading(Protocol):
    """A requested window: a future, or something like it."""

    def result(self) -> Window:
        """The window; waits until it is read."""


@dataclass
class _Held:
    """A window that a stream holds, and the place in it from which the lane's next one is needed."""

    key: WindowKey
    read: Reading
    next_from: float


class Stream:
    """The windows of samples: for each lane the one in use and, from some place in it on, the next.

    That place differs from lane to lane, so that reading spreads over time.
    """

    def __init__(self, order: Order, ask: Callable[[WindowKey], Reading]):
        self.order = order
        self._ask = ask
        self._current: dict[int, _Held] = {}
        self._next: dict[int, tuple[WindowKey, Reading]] = {}

    def windows(self, places: Sequence[Place]) -> list[Window]:
        """The window of each place; waits until all are read."""
        reads = []
        for key, inside in places:
            held = self._current.get(key.lane)
            if held is None or held.key != key:
                held = self._enter(key)
            if inside >= held.next_from:
                held.next_from = math.inf
                following = self.order.following(key)
                self._next[key.lane] = following, self._ask(following)
            reads.append(held.read)
        return [read.result() for read in reads]

    def _enter(self, key: WindowKey) -> _Held:
        """Make this the lane's window in use, and drop the former one."""
        following, read = self._next.pop(key.lane, (None, None))
        if read is None or following != key:
            read = self._ask(key)
        next_from = _SPREAD * (key.lane * _GOLDEN % 1.0) * self.order.window_size(key)
        held = self._current[key.lane] = _Held(key, read, next_from)
        return held
