"""Finds the samples of a shard in one pass over the headers of an uncompressed tar file.

Members are grouped into samples by webdataset's own rule, so that both see the same samples.
"""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from service.data.image import SUFFIXES
from service.errors import DataError
from service.storage import Storage

LABEL = "cls"
NO_LABEL = -1
_LARGEST_LABEL = 2**31 - 1
_LARGEST_LABEL_BYTES = 64
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Sample:
    """An image in a shard: its key, first byte, size in bytes, and label (NO_LABEL if it has none)."""

    key: str
    offset: int
    size: int
    label: int


def samples_of(storage: Storage, shard: str) -> tuple[list[Sample], int]:
    """The samples of a shard that hold an image, and the number of those that hold none.

    DataError if the file is compressed, cut short, or not a tar file.
    """
    file = cast(BinaryIO, io.BufferedReader(_RangedFile(storage, shard), _RangedFile.LARGEST))
    magic = file.read(2)
    file.seek(0)
    if magic == _GZIP:
        raise DataError(
            f"{storage.url(shard)}: compressed, and no part of it can be read alone; unpack it"
            " with gunzip (its images are already compressed)"
        )
    # Imported here, because it imports torch, which reading processes do without.
    from webdataset.tariterators import group_by_keys

    samples, without = [], 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for sample in group_by_keys(_members(tar, file, shard)):
                image = _image(sample)
                if image is None:
                    without += 1
                else:
                    label = _label(sample.get(LABEL, b""))
                    samples.append(Sample(printable(sample["__key__"]), *image, label))
            _check_end(tar, file)
    except ValueError as error:
        raise DataError(
            f"{storage.url(shard)}: {error.args[0]}; write the shard again with each name once"
        ) from error
    except (tarfile.TarError, OverflowError) as error:
        raise DataError(
            f"{storage.url(shard)}: not a complete tar file ({error}); copy it again or pack again"
        ) from error
    return samples, without


def _members(tar: tarfile.TarFile, file: BinaryIO, shard: str) -> Iterator[dict[str, Any]]:
    """Name of each file in a tar with its place, or with its bytes if it is a label."""
    for member in tar:
        tar.members = []  # type: ignore[attr-defined]  # or it would keep them all
        if member.isreg() and not member.name.startswith("__"):
            data: Any = (member.offset_data, member.size)
            if member.name.lower().endswith(f".{LABEL}"):
                file.seek(member.offset_data)
                data = file.read(min(member.size, _LARGEST_LABEL_BYTES))
            yield {"fname": member.name, "data": data, "__url__": shard}


def _image(sample: dict[str, Any]) -> tuple[int, int] | None:
    """Place of the first image: one with a plain suffix, or else with one such as `left.png`."""
    members = [(name.rpartition("."), place) for name, place in sample.items() if name[0] != "_"]
    for plain in (True, False):
        for (before, _, suffix), place in members:
            if f".{suffix}" in SUFFIXES and (not before or not plain):
                return place
    return None


def printable(name: str) -> str:
    """The name as text; bytes that are not UTF-8 are escaped."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _label(text: bytes) -> int:
    try:
        label = int(text)
    except ValueError:
        return NO_LABEL
    return label if 0 <= label <= _LARGEST_LABEL else NO_LABEL


def _check_end(tar: tarfile.TarFile, file: BinaryIO) -> None:
    """ReadError at a damaged header, where tarfile stops silently.

    A complete file ends there, or goes on with zeros.
    """
    file.seek(tar.offset)
    block = file.read(tarfile.BLOCKSIZE)
    if block.strip(b"\0"):
        raise tarfile.ReadError(f"a damaged header at byte {tar.offset}")


class _RangedFile(io.RawIOBase):
    """An object as a file: each read fetches more than the last one, until a seek jumps far ahead."""

    SMALLEST, LARGEST = 1 << 16, 1 << 22
    NEAR = 1 << 20

    def __init__(self, storage: Storage, key: str):
        self._storage, self._key = storage, key
        self._position = self._end = 0
        self._ahead = self.SMALLEST

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to `offset` from the start or from the current position."""
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("the end is not known")
        self._position = offset + (self._position if whence == io.SEEK_CUR else 0)
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        """Fill some of the buffer with what comes next."""
        near = 0 <= self._position - self._end <= self.NEAR
        self._ahead = min(2 * self._ahead, self.LARGEST) if near else self.SMALLEST
        data = self._storage.get(self._key, self._position, min(self._ahead, len(buffer)))
        buffer[: len(data)] = data
        self._position += len(data)
        self._end = self._position
        return len(data)
