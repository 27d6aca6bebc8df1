"""Objects as files below a folder. A write is whole or does not happen."""

import contextlib
import errno
import fcntl
import functools
import hashlib
import io
import os
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from typing_extensions import override

from service.errors import StorageError
from service.storage.base import ConflictError, Entry, MissingError, Storage, Writer
from service.storage.links import Folders

T = TypeVar("T")

_UNFINISHED = ".unfinished-"


class FolderStorage(Storage):
    """Files below a folder, which is created at the first write."""

    def __init__(self, address: str, retry_s: float = 0):
        super().__init__(retry_s)
        self.root = Path(address).expanduser().absolute()
        self.address = str(self.root)

    @override
    def get(self, key: str, start: int = 0, length: int | None = None, etag: str = "") -> bytes:
        def read() -> bytes:
            with open(self.root / key, "rb", buffering=0) as file:
                file.seek(start)
                return _read(file, length)

        self.traffic.add(requests=1)
        data = self._call(key, read)
        self.traffic.add(bytes=len(data))
        return data

    @override
    def get_versioned(self, key: str) -> tuple[bytes, str]:
        data = self.get(key)
        return data, hashlib.sha256(data).hexdigest()

    @override
    def put(self, key: str, data: bytes) -> None:
        self._call(key, lambda: self._write(key, data))

    @override
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

    @override
    @contextlib.contextmanager
    def writer(self, key: str) -> Iterator[Writer]:
        file = self._call(key, lambda: self._part(self.root / key))
        try:
            with file:  # closing writes what is left, and may fail like any write
                yield file
                self._call(key, lambda: self._keep(file, self.root / key))
        except OSError as error:
            raise self._in_words(key, error) from error
        finally:
            Path(file.name).unlink(missing_ok=True)

    @override
    def entries(self, prefix: str = "") -> dict[str, Entry]:
        def walk() -> dict[str, Entry]:
            entries = {}
            for path in _walk(self.root / os.path.dirname(prefix), Folders(self.root)):
                key = path.relative_to(self.root).as_posix()
                if key.startswith(prefix) and not path.name.startswith(_UNFINISHED):
                    # deleted meanwhile, or a link to nothing or to itself
                    with _suppressed(errno.ENOENT, errno.ELOOP):
                        found = path.stat()
                        if stat.S_ISREG(found.st_mode):  # reading a pipe would wait for ever
                            mark = f"{found.st_mtime_ns}-{found.st_ino}"
                            entries[key] = Entry(found.st_size, mark=mark)
            return dict(sorted(entries.items()))

        return self._call(prefix, walk)

    @override
    def dead_links(self) -> list[str]:
        def walk() -> list[str]:
            links = (path for path in _walk(self.root, Folders(self.root)) if path.is_symlink())
            return sorted(p.relative_to(self.root).as_posix() for p in links if not p.exists())

        return self._call("", walk)

    @override
    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._call(key, functools.partial(self._remove, self.root / key))

    @override
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
        """Hold the folder's lock file, so that compare-and-write is atomic among processes."""
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
        """A new file beside `path`; listings leave it out."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path.parent / f"{_UNFINISHED}{path.name}-{uuid.uuid4().hex}", "wb")

    def _keep(self, file: BinaryIO, path: Path) -> None:
        """Flush the file to disk, then move it into its place."""
        file.flush()
        os.fsync(file.fileno())
        os.replace(file.name, path)

    def _call(self, key: str, call: Callable[[], T]) -> T:
        try:
            return self._persist(self.url(key), call, _is_transient_file_error)
        except OSError as error:
            raise self._in_words(key, error) from error

    def _in_words(self, key: str, error: OSError) -> StorageError:
        if isinstance(error, FileNotFoundError):
            return MissingError(f"{self.url(key)}: no such file")
        return StorageError(
            f"{self.url(key)}: {error.strerror or error}; free some space or correct the permissions,"
            " then start again"
        )


@contextlib.contextmanager
def _suppressed(*codes: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in codes:
            raise


def _walk(start: Path, folders: Folders) -> Iterator[Path]:
    """All that is no folder below `start`; links to folders elsewhere are followed, each once."""
    for folder, inner, names in os.walk(start, followlinks=True):
        paths = {name: os.path.join(folder, name) for name in sorted(inner)}
        inner[:] = [
            name for name, path in paths.items() if folders.enter(path, link=os.path.islink(path))
        ]
        yield from (Path(folder, name) for name in names)


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
    """`length` bytes, or all, in as many reads as it takes; fewer if the file ends."""
    if length is None:
        return file.readall()
    pieces = []
    while length and (piece := file.read(length)):
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces) if len(pieces) != 1 else pieces[0]
