"""Where the samples of a shard lie: one pass over the headers of an uncompressed tar file.

Members are grouped into samples by webdataset's own rule, so that both find the same ones.
"""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from service.errors import DataError
from service.storage import Storage

IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "ppm", "pgm", "tif", "tiff")
LABEL = "cls"
NO_LABEL = -1
_LARGEST_LABEL = 2**31 - 1
_LARGEST_LABEL_BYTES = 64
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Sample:
    """An image in a shard: its key, first byte, bytes, and label (NO_LABEL where none can be read)."""

    key: str
    offset: int
    size: int
    label: int


def samples_of(storage: Storage, shard: str) -> tuple[list[Sample], int]:
    """The samples of a shard that hold an image, and how many hold none.

    DataError where the file is compressed, cut short, or no tar file.
    """
    file = cast(BinaryIO, io.BufferedReader(_RangedFile(storage, shard), _RangedFile.LARGEST))
    magic = file.read(2)
    file.seek(0)
    if magic == _GZIP:
        raise DataError(
            f"{storage.url(shard)}: compressed, so that no part of it can be read alone; unpack it:"
            " gunzip (the images in it are compressed already)"
        )
    # Here, for it brings torch with it, which processes that read do without.
    from webdataset.tariterators import group_by_keys

    found, without = [], 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for sample in group_by_keys(_members(tar, file, shard)):
                image = _image(sample)
                if image is None:
                    without += 1
                else:
                    label = _label(sample.get(LABEL, b""))
                    found.append(Sample(_printable(sample["__key__"]), *image, label))
            _check_end(tar, file)
    except ValueError as error:
        raise DataError(
            f"{storage.url(shard)}: {error.args[0]}; write the shard anew, each name once"
        ) from error
    except (tarfile.TarError, OverflowError) as error:
        raise DataError(
            f"{storage.url(shard)}: not a whole tar file ({error}); copy it again or pack again"
        ) from error
    return found, without


def _members(tar: tarfile.TarFile, file: BinaryIO, shard: str) -> Iterator[dict[str, Any]]:
    """Name of each file in a tar with its place, or in a label's case its bytes."""
    for member in tar:
        tar.members = []  # type: ignore[attr-defined]  # it would keep them all
        if member.isreg() and not member.name.startswith("__"):
            data: Any = (member.offset_data, member.size)
            if member.name.lower().endswith(f".{LABEL}"):
                file.seek(member.offset_data)
                data = file.read(min(member.size, _LARGEST_LABEL_BYTES))
            yield {"fname": member.name, "data": data, "__url__": shard}


def _image(sample: dict[str, Any]) -> tuple[int, int] | None:
    """Place of the first image: under a plain suffix, or under one such as `left.png`."""
    members = [(name.rpartition("."), place) for name, place in sample.items() if name[0] != "_"]
    for plain in (True, False):
        for (before, _, suffix), place in members:
            if suffix in IMAGES and (not before or not plain):
                return place
    return None


def _printable(name: str) -> str:
    """The name, its bytes that are no UTF-8 written out: keys are stored and shown as text."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _label(text: bytes) -> int:
    try:
        label = int(text)
    except ValueError:
        return NO_LABEL
    return label if 0 <= label <= _LARGEST_LABEL else NO_LABEL


def _check_end(tar: tarfile.TarFile, file: BinaryIO) -> None:
    """tarfile ends in silence where a header is damaged; a whole file ends here or in zeros."""
    file.seek(tar.offset)
    block = file.read(tarfile.BLOCKSIZE)
    if block.strip(b"\0"):
        raise tarfile.ReadError(f"a damaged header at byte {tar.offset}")


class _RangedFile(io.RawIOBase):
    """An object as a file: it reads ever more at once, until it is made to jump far ahead."""

    SMALLEST, LARGEST = 1 << 16, 1 << 22
    NEAR = 1 << 20

    def __init__(self, storage: Storage, key: str):
        self._storage, self._key = storage, key
        self._position = self._end = 0
        self._ahead = self.SMALLEST

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; from the start or from where it is."""
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
