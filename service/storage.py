"""The one door to objects: folders and s3:// addresses behind one small interface.

Keys are relative to the address, with forward slashes. Every write is whole or not at all. Transient
faults are tried again with jitter for `retry_s`; lasting ones raise StorageError with the remedy.
Safe under many threads. What S3 needs beyond this stands in `s3.py`.
"""

import contextlib
import fcntl
import functools
import hashlib
import io
import logging
import os
import random
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

from service.errors import StorageError

log = logging.getLogger(__name__)

T = TypeVar("T")

S3_SCHEME = "s3://"
TIMEOUT_S = 60.0
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
_UNFINISHED = ".unfinished-"


class MissingError(StorageError):
    """No object has this key."""


class ConflictError(StorageError):
    """A conditional write lost: another wrote first."""


class ChangedError(StorageError):
    """The object is not the one that was meant: its ETag is another."""


@dataclass(frozen=True)
class Entry:
    """What a listing tells of an object: bytes, and S3's ETag ("" in folders, which have none)."""

    size: int
    etag: str = ""


@dataclass
class Traffic:
    """What went through a storage since it was opened: reads asked for, their bytes, second tries."""

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
    """Where an object is written piece by piece."""

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
        """End the waiting of all threads: what fails from now on is not tried again."""
        self._closed.set()

    @abstractmethod
    def get(self, key: str, start: int = 0, length: int | None = None, etag: str = "") -> bytes:
        """The object, or `length` bytes of it from `start`, fewer at its end.

        MissingError where there is none; ChangedError where `etag` is given and the object's another.
        """

    @abstractmethod
    def get_versioned(self, key: str) -> tuple[bytes, str]:
        """The object and its version, for a later `put_if`."""

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Write the object, over one that is there."""

    @abstractmethod
    def put_if(self, key: str, data: bytes, version: str | None) -> str:
        """Write if the object's version is still `version` (None: absent), and return the new one.

        ConflictError where another was faster.
        """

    @abstractmethod
    def writer(self, key: str) -> AbstractContextManager[Writer]:
        """Write an object piece by piece; it is there, whole, once the context ends without error."""

    @abstractmethod
    def entries(self, prefix: str = "") -> dict[str, Entry]:
        """Every object whose key starts with `prefix`, by key, sorted."""

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Bytes of every object whose key starts with `prefix`, by key, sorted."""
        return {key: entry.size for key, entry in self.entries(prefix).items()}

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Remove the objects; those that are gone already are no error."""

    @abstractmethod
    def sweep(self, prefix: str) -> None:
        """Clear away what writers of such keys that died have left; none may be at work on them."""

    def url(self, key: str) -> str:
        """The address of an object, for people."""
        return f"{self.address}/{key}"

    def _persist(self, call: Callable[[], T], transient: Callable[[Exception], bool]) -> T:
        """The result of `call`, tried again with jittered, doubling pauses until `retry_s` is over."""
        deadline = time.monotonic() + self.retry_s
        pause = FIRST_PAUSE_S
        while True:
            try:
                return call()
            except Exception as error:
                late = time.monotonic() + pause > deadline
                if late or not transient(error) or self._closed.is_set():
                    raise
                log.warning("event=storage_retry pause_s=%.1f error=%s", pause, error)
            self._closed.wait(pause * random.uniform(0.5, 1.0))
            self.traffic.add(retries=1)
            pause = min(2 * pause, LONGEST_PAUSE_S)


def is_s3(address: str) -> bool:
    """Whether the address names a bucket, not a folder."""
    return address.startswith(S3_SCHEME)


def open_storage(address: str, retry_s: float = 0, timeout_s: float = TIMEOUT_S) -> Storage:
    """The storage at a folder or s3://bucket/prefix. Nothing is contacted or made yet.

    A request to S3 that is silent for `timeout_s`, or slower than 1 MiB in so long, is given up.
    """
    if is_s3(address):
        from service.s3 import S3Storage  # boto3 takes its time, which folders need not

        return S3Storage(address, retry_s, timeout_s)
    if "://" in address:
        raise StorageError(f"{address}: only folders and s3:// addresses are known")
    return FolderStorage(address, retry_s)


class FolderStorage(Storage):
    """Files below a folder, made when first written to."""

    def __init__(self, address: str, retry_s: float = 0):
        super().__init__(retry_s)
        self.root = Path(address).absolute()
        self.address = str(self.root)

    def get(self, key: str, start: int = 0, length: int | None = None, etag: str = "") -> bytes:
        def read() -> bytes:
            with open(self.root / key, "rb", buffering=0) as file:
                file.seek(start)
                return _read(file, length)

        self.traffic.add(requests=1)
        data = self._call(key, read)
        self.traffic.add(bytes=len(data))
        return data

    def get_versioned(self, key: str) -> tuple[bytes, str]:
        data = self.get(key)
        return data, hashlib.sha256(data).hexdigest()

    def put(self, key: str, data: bytes) -> None:
        self._call(key, lambda: self._write(key, data))

    def put_if(self, key: str, data: bytes, version: str | None) -> str:
        with self._alone():
            try:
                present = self.get_versioned(key)[1]
            except MissingError:
                present = None
            if present != version:
                raise ConflictError(f"{self.url(key)}: changed by another process")
            self.put(key, data)
        return hashlib.sha256(data).hexdigest()

    @contextlib.contextmanager
    def writer(self, key: str) -> Iterator[Writer]:
        with self._call(key, lambda: self._part(self.root / key)) as file:
            part = Path(file.name)
            try:
                yield file
                self._call(key, lambda: self._keep(file, self.root / key))
            except OSError as error:
                raise self._in_words(key, error) from error
            finally:
                part.unlink(missing_ok=True)

    def entries(self, prefix: str = "") -> dict[str, Entry]:
        def walk() -> dict[str, Entry]:
            found = {}
            for folder, _, names in os.walk(self.root / os.path.dirname(prefix), followlinks=True):
                for name in names:
                    path = Path(folder, name)
                    key = path.relative_to(self.root).as_posix()
                    if key.startswith(prefix) and not name.startswith(_UNFINISHED):
                        with contextlib.suppress(FileNotFoundError):  # gone meanwhile, or a dead link
                            found[key] = Entry(path.stat().st_size)
            return dict(sorted(found.items()))

        return self._call(prefix, walk)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._call(key, functools.partial(self._remove, self.root / key))

    def sweep(self, prefix: str) -> None:
        folder, _, name = prefix.rpartition("/")
        for path in (self.root / folder).glob(f"{_UNFINISHED}{name}*"):
            self._call(path.name, functools.partial(self._remove, path))

    def _remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        for parent in path.parents:
            if parent == self.root or not parent.is_dir() or any(parent.iterdir()):
                break
            parent.rmdir()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the folder's lock file, so that compare-and-write is one act for all processes."""
        self._call("", functools.partial(self.root.mkdir, parents=True, exist_ok=True))
        key = f"{_UNFINISHED}lock"
        with self._call(key, lambda: open(self.root / key, "w")) as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            yield

    def _write(self, key: str, data: bytes) -> None:
        with self._part(self.root / key) as file:
            try:
                file.write(data)
                self._keep(file, self.root / key)
            finally:
                Path(file.name).unlink(missing_ok=True)

    def _part(self, path: Path) -> BinaryIO:
        """A new file beside `path`, which no listing shows."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path.parent / f"{_UNFINISHED}{path.name}-{uuid.uuid4().hex}", "wb")

    def _keep(self, file: BinaryIO, path: Path) -> None:
        """Put the file on disk, then in its place."""
        file.flush()
        os.fsync(file.fileno())
        os.replace(file.name, path)

    def _call(self, key: str, call: Callable[[], T]) -> T:
        try:
            return self._persist(call, _is_transient_file_error)
        except OSError as error:
            raise self._in_words(key, error) from error

    def _in_words(self, key: str, error: OSError) -> StorageError:
        if isinstance(error, FileNotFoundError):
            return MissingError(f"{self.url(key)}: no such file")
        return StorageError(
            f"{self.url(key)}: {error.strerror or error}; make room or correct the permissions,"
            " then start again"
        )


def _is_transient_file_error(error: Exception) -> bool:
    lasting = (
        FileNotFoundError,
        FileExistsError,
        PermissionError,
        NotADirectoryError,
        IsADirectoryError,
    )
    return isinstance(error, OSError) and not isinstance(error, lasting)


def _read(file: io.RawIOBase, length: int | None) -> bytes:
    """`length` bytes, or all, in as many reads as it takes; fewer where the file ends."""
    if length is None:
        return file.readall()
    pieces = []
    while length and (piece := file.read(length)):
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces) if len(pieces) != 1 else pieces[0]
