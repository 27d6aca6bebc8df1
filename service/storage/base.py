"""The interface of every storage, its errors, and its retries."""

import logging
import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from service.errors import StorageError

log = logging.getLogger(__name__)

T = TypeVar("T")

S3_SCHEME = "s3://"
TIMEOUT_S = 60.0
BLOCK_BYTES = 4 << 20
"""`data.cache_dir` holds blocks of this size; each lane reads from one."""
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0


class MissingError(StorageError):
    """No object has this key."""


class ConflictError(StorageError):
    """A conditional write lost to another writer."""


class ChangedError(StorageError):
    """The object is not the expected one: its ETag differs."""


@dataclass(frozen=True)
class Entry:
    """An object in a listing: its bytes, its ETag in S3, and its `mark` in a folder, else "".

    A file whose mark differs may have been changed, or only copied.
    """

    size: int
    etag: str = ""
    mark: str = ""


@dataclass
class Traffic:
    """Traffic of a storage since it was opened: reads, their bytes, and retries."""

    requests: int = 0
    bytes: int = 0
    retries: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, requests: int = 0, bytes: int = 0, retries: int = 0) -> None:
        """Count, from any thread."""
        with self._lock:
            self.requests += requests
            self.bytes += bytes
            self.retries += retries


class Writer(Protocol):
    """Takes an object piece by piece."""

    def write(self, data: bytes, /) -> object:
        """Append bytes."""


class Storage(ABC):
    """Objects below one address."""

    address: str

    def __init__(self, retry_s: float):
        self.retry_s = retry_s
        self.traffic = Traffic()
        self._closed = threading.Event()

    def close(self) -> None:
        """Stop all retries: a call that fails from now on is not repeated."""
        self._closed.set()

    @abstractmethod
    def get(self, key: str, start: int = 0, length: int | None = None, etag: str = "") -> bytes:
        """The object, or `length` bytes of it from `start`; fewer if it ends before.

        MissingError if there is no object; ChangedError if `etag` is given and is not the object's.
        """

    @abstractmethod
    def get_versioned(self, key: str) -> tuple[bytes, str]:
        """The object and its version, for a later `put_if`."""

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Write the object; it replaces one that is there."""

    @abstractmethod
    def put_if(self, key: str, data: bytes, version: str | None) -> str:
        """Write if the object's version is still `version` (None: no object); returns the new version.

        ConflictError if another process was faster.
        """

    @abstractmethod
    def writer(self, key: str) -> AbstractContextManager[Writer]:
        """Write an object piece by piece; it appears, whole, once the context ends without error."""

    @abstractmethod
    def entries(self, prefix: str = "") -> dict[str, Entry]:
        """Every object whose key starts with `prefix`, by key, sorted."""

    def dead_links(self) -> list[str]:
        """Keys of links to nothing, which stand for objects that may be missing, sorted."""
        return []

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Bytes of every object whose key starts with `prefix`, by key, sorted."""
        return {key: entry.size for key, entry in self.entries(prefix).items()}

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Delete the objects; missing ones are no error."""

    @abstractmethod
    def sweep(self, prefix: str) -> None:
        """Delete what dead writers of such keys left behind; no writer may be at work on them."""

    def url(self, key: str) -> str:
        """The address of an object, for people."""
        return f"{self.address}/{key}"

    def _persist(self, address: str, call: Callable[[], T], transient: Callable[[Exception], bool]) -> T:
        """The result of `call`, retried with jittered, doubling pauses until `retry_s` is over.

        `address` is the object's, for the log.
        """
        deadline = time.monotonic() + self.retry_s
        pause = FIRST_PAUSE_S
        while True:
            try:
                return call()
            except Exception as error:
                late = time.monotonic() + pause > deadline
                if late or not transient(error) or self._closed.is_set():
                    raise
                log.warning(
                    "event=storage_retry address=%s pause_s=%.1f error=%s", address, pause, error
                )
            self._closed.wait(pause * random.uniform(0.5, 1.0))
            self.traffic.add(retries=1)
            pause = min(2 * pause, LONGEST_PAUSE_S)


def is_s3(address: str) -> bool:
    """Whether the address names a bucket rather than a folder."""
    return address.startswith(S3_SCHEME)


def split_address(address: str) -> tuple[str, str]:
    """The address of a file's folder, and the file's name; ValueError if it names a bucket alone."""
    folder, _, name = address.rpartition("/")
    if folder == "s3:/":
        raise ValueError(f"{address}: a bucket, but no file in it; add /FOLDER/FILE")
    return folder or ("/" if address.startswith("/") else "."), name
