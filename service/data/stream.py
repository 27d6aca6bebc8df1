"""The bytes of samples, window by window, read ahead by threads that end with their reader."""

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

# What lies between two samples is read over rather than asked around, if it is no more than this
# or two samples: a request takes as long.
READ_OVER_BYTES = 1 << 20
# Over which part of a window the lanes ask for their next ones; the rest is time to read the last.
_SPREAD = 0.75
_GOLDEN = 0.6180339887498949


class Shards(Protocol):
    """Where shards are read: a storage, or a cache before it."""

    def get(self, key: str, start: int = 0, length: int | None = None, etag: str = "") -> bytes:
        """`length` bytes of the shard from `start`, fewer at its end."""

    def url(self, key: str) -> str:
        """The address of a shard, for people."""


@dataclass(frozen=True)
class Window:
    """A window's index rows in the order in which they are shown, and what was read for them.

    `spans` tells for each row in which of the `blobs` its image lies, where it begins and its bytes.
    `memory` is what the blobs lie in, kept for as long as the window is.
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
    """The encoded images of these rows; DataError where a shard is not as indexed.

    Rows of one shard are read in one request if they lie close together, as those of a window do.
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
    """`order` of the sorted rows, cut where the shard changes or too much lies between."""
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
            f"{shards.url(name)}: bytes {start} to {end} wanted, {len(data)} read: the shard is"
            " cut short; copy it again or pack again"
        )
    return data


class WindowReader:
    """Reads windows in the background, many at a time. Closes its storage."""

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
        """What was read since this reader was opened."""
        traffic, cache = self._storage.traffic, self._cache
        return {
            "data_requests": traffic.requests,
            "data_bytes": traffic.bytes,
            "data_retries": traffic.retries,
            "cache_hits": cache.hits if cache else 0,
            "cache_misses": cache.misses if cache else 0,
        }

    def close(self) -> None:
        """End the threads, and their second tries."""
        self._storage.close()
        self._threads.shutdown(cancel_futures=True)

    def _read(self, key: WindowKey) -> Window:
        return read_window(self._shards, self._index, self._order.window_rows(key))


class Reading(Protocol):
    """A window that was asked for: a future, or what is like one."""

    def result(self) -> Window:
        """The window; waits until it is read."""


@dataclass
class _Held:
    """A window that a stream holds, and the place in it from which its lane's next one is wanted."""

    key: WindowKey
    read: Reading
    next_from: float


class Stream:
    """The windows of samples: of each lane the one in use and, from some place in it on, the next.

    That place is another in each lane, so that the reading spreads over time.
    """

    def __init__(self, order: Order, ask: Callable[[WindowKey], Reading]):
        self.order = order
        self._ask = ask
        self._current: dict[int, _Held] = {}
        self._next: dict[int, tuple[WindowKey, Reading]] = {}

    def windows(self, places: Sequence[Place]) -> list[Window]:
        """The window of each place; waits for what is not yet read."""
        found = []
        for key, inside in places:
            held = self._current.get(key.lane)
            if held is None or held.key != key:
                held = self._enter(key)
            if inside >= held.next_from:
                held.next_from = math.inf
                following = self.order.following(key)
                self._next[key.lane] = following, self._ask(following)
            found.append(held.read)
        return [read.result() for read in found]

    def _enter(self, key: WindowKey) -> _Held:
        """Take the lane's window in use and let go of its former one."""
        following, read = self._next.pop(key.lane, (None, None))
        if read is None or following != key:
            read = self._ask(key)
        next_from = _SPREAD * (key.lane * _GOLDEN % 1.0) * self.order.window_size(key)
        held = self._current[key.lane] = _Held(key, read, next_from)
        return held
