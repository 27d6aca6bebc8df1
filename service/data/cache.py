"""A node's copy of the shard blocks that its workers read, in a folder.

A training reads every shard once an epoch; from the second epoch on, this spares the network. Any
process may read and write at any time: blocks appear whole, and the oldest are cleared.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from service.data.index import Index
from service.storage import Storage
from service.storage.base import BLOCK_BYTES

log = logging.getLogger(__name__)

# The share of a full folder that is cleared at a time.
_CLEARED_SHARE = 0.1
# The share of a disk's room that the cache leaves to others.
_LEFT_FREE_SHARE = 0.1
# A process that was stopped while it held the lock blocks nobody: the others go on without storing.
_LOCK_LIMIT_S = 2.0
_LOCK_POLL_S = 0.01
_BLOCK, _PART = ".block", ".part"
# A block's file ends with a digest of each chunk, so that a read checks what it returns and no more.
_CHUNK_BYTES, _DIGEST_BYTES = 1 << 16, 16


@dataclass(frozen=True)
class BlockKey:
    """A block of an object: its address, and the `version` that distinguishes it from later objects."""

    address: str
    size: int
    version: str
    number: int

    @property
    def length(self) -> int:
        """Bytes of the block; only the last one of an object is shorter."""
        return min(BLOCK_BYTES, self.size - self.number * BLOCK_BYTES)

    @property
    def file(self) -> str:
        """Name in the folder."""
        name = f"{self.address} {self.size} {self.version} {self.number}"
        return hashlib.blake2b(name.encode(), digest_size=16).hexdigest() + _BLOCK


class Cache:
    """Blocks in a folder of at most `limit_bytes`; the least recently used ones are cleared first.

    It never takes the last of a disk, whatever its limit.

    Trouble with the folder is logged once; reading then goes on without the cache.
    """

    def __init__(self, folder: str, limit_bytes: int):
        self.folder = Path(folder).expanduser().absolute()
        self.limit_bytes = limit_bytes
        self.hits = self.misses = 0
        self._lock = threading.Lock()
        self._warned = self._told_room = False

    def read(self, key: BlockKey, start: int, length: int, fetch: Callable[[], bytes]) -> bytes:
        """`length` bytes from `start` of a block; `fetch` gets the block if it is not in the folder."""
        data = self._find(key, start, length)
        with self._lock:
            self.hits += data is not None
            self.misses += data is None
        if data is not None:
            return data
        block = fetch()
        if len(block) == key.length:
            self._keep(key, block)
        return block[start : start + length]

    def _find(self, key: BlockKey, start: int, length: int) -> bytes | None:
        path = self.folder / key.file
        try:
            with open(path, "rb", buffering=0) as file:
                data = _read_sealed(file.fileno(), key.length, start, length)
                if data is not None:
                    os.utime(file.fileno())  # the time of its last use
                    return data
            log.warning("event=cache_block_damaged file=%s", path)
            path.unlink(missing_ok=True)  # the next read stores it again
        except FileNotFoundError:
            pass
        except OSError as error:
            self._warn_once(error)
        return None

    def _keep(self, key: BlockKey, data: bytes) -> None:
        path, block = self.folder / key.file, data + _digests(data)
        if len(block) > self.limit_bytes:
            return
        try:
            with self._alone() as count:
                if not path.exists():
                    self._make_room(count, len(block))
                    part = self.folder / f"{uuid.uuid4().hex}{_PART}"
                    part.write_bytes(block)
                    os.replace(part, path)
        except OSError as error:
            self._warn_once(error)

    @contextlib.contextmanager
    def _alone(self) -> Iterator["_Count"]:
        """Lock the folder against all other processes and threads; yields its count of bytes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "bytes", "a+") as file:
            deadline = time.monotonic() + _LOCK_LIMIT_S
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(_LOCK_POLL_S)
            yield _Count(file)

    def _make_room(self, count: "_Count", needed: int) -> None:
        """Clear the oldest blocks if the folder would exceed its limit, or fill its disk."""
        present = count.get()
        if present is None or present + needed > self._limit(present):
            present = self._clear(needed)
        count.set(present + needed)

    def _limit(self, present: int) -> int:
        """Bytes that the folder may hold, if it holds `present` now: its disk has other users, too."""
        free = shutil.disk_usage(self.folder).free
        room = int((1 - _LEFT_FREE_SHARE) * (present + free))
        if room < self.limit_bytes and not self._told_room:
            self._told_room = True
            log.warning(
                "event=cache_limited folder=%s cache_bytes=%d free_bytes=%d: the disk has less room than"
                " data.cache_bytes; the cache takes less",
                *(self.folder, self.limit_bytes, free),
            )
        return min(self.limit_bytes, room)

    def _clear(self, needed: int) -> int:
        """Clear blocks, and what a killed process left half written; returns the bytes that stay."""
        blocks = []
        for entry in os.scandir(self.folder):
            if entry.name.endswith(_PART):
                os.unlink(entry.path)
            if entry.name.endswith(_BLOCK):
                status = entry.stat()
                blocks.append((status.st_mtime_ns, status.st_size, entry.path))
        present = sum(size for _, size, _ in blocks)
        limit = self._limit(present)
        if present + needed > limit:
            wanted = limit * (1 - _CLEARED_SHARE) - needed
            for _, size, path in sorted(blocks):
                if present <= max(wanted, 0):
                    break
                os.unlink(path)
                present -= size
        return present

    def _warn_once(self, error: OSError) -> None:
        if not self._warned:
            log.warning("event=cache_failed folder=%s error=%s", self.folder, error)
        self._warned = True


def _digests(data: bytes) -> bytes:
    """The digest of each chunk."""
    view = memoryview(data)
    chunks = (view[start : start + _CHUNK_BYTES] for start in range(0, len(data), _CHUNK_BYTES))
    return b"".join(hashlib.blake2b(chunk, digest_size=_DIGEST_BYTES).digest() for chunk in chunks)


def _read_sealed(file: int, size: int, start: int, length: int) -> bytes | None:
    """`length` bytes from `start` of a block of `size` bytes, by its file; None if they are damaged."""
    chunks = -(-size // _CHUNK_BYTES)
    if os.fstat(file).st_size != size + chunks * _DIGEST_BYTES:
        return None
    first, last = start // _CHUNK_BYTES, -(-(start + length) // _CHUNK_BYTES)
    begin = first * _CHUNK_BYTES
    data = os.pread(file, min(last * _CHUNK_BYTES, size) - begin, begin)
    digests = os.pread(file, (last - first) * _DIGEST_BYTES, size + first * _DIGEST_BYTES)
    if _digests(data) != digests:
        return None
    return data[start - begin : start - begin + length]


class _Count:
    """The bytes in the folder, in a small file that all its users update."""

    def __init__(self, file: TextIO):
        self._file = file

    def get(self) -> int | None:
        """The count; None if it is unknown and the blocks have to be counted."""
        self._file.seek(0)
        text = self._file.read()
        return int(text) if text.isdecimal() else None

    def set(self, count: int) -> None:
        """Store the count."""
        self._file.truncate(0)
        self._file.write(str(count))
        self._file.flush()


class CachedShards:
    """Shards of a storage, through a cache."""

    def __init__(self, storage: Storage, index: Index, cache: Cache):
        self.storage, self.index, self.cache = storage, index, cache
        self._fingerprint = index.fingerprint()

    def get(self, key: str, start: int = 0, length: int | None = None, etag: str = "") -> bytes:
        """`length` bytes of the shard from `start`, fewer at its end."""
        size = self.index.shards[key]
        end = size if length is None else min(start + length, size)
        pieces = []
        for number in range(start // BLOCK_BYTES, -(-end // BLOCK_BYTES)):
            block = BlockKey(self.url(key), size, etag or self._fingerprint, number)
            first = number * BLOCK_BYTES
            low, high = max(start, first) - first, min(end, first + block.length) - first
            pieces.append(self.cache.read(block, low, high - low, self._fetch(key, block, etag)))
        return b"".join(pieces) if len(pieces) != 1 else pieces[0]

    def url(self, key: str) -> str:
        """The address of a shard, for people."""
        return self.storage.url(key)

    def _fetch(self, key: str, block: BlockKey, etag: str) -> Callable[[], bytes]:
        return lambda: self.storage.get(key, block.number * BLOCK_BYTES, block.length, etag)
