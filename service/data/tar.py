"""Finds the samples of a shard in one pass over the headers of an uncompressed tar file.

Members are grouped into samples by webdataset's own rule, so that both see the same samples.
"""

import dataclasses
import io
import json
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

from service.data.image import SUFFIXES
from service.data.listing import is_hidden
from service.errors import DataError
from service.storage import Storage
from service.text import printable

LABEL = "cls"
FIELDS = "json"
NO_LABEL = -1
HIDDEN = "hidden members"
NOT_REGULAR = "members that are neither files nor folders"
SPARSE = "sparse members, whose bytes do not lie in one piece (write the tar again without --sparse)"
OTHER_IMAGES = "samples with images, but none that data.image names"
LINKED_OUT = "links to what is not in the tar, or is left out of it"
TOO_LARGE = "members of 2 GiB and more"
NO_SUFFIX = "members without a suffix"
FURTHER_IMAGES = (
    "more images of a key, which ends at the first dot of a name (data.image names the one to take)"
)
LABEL_APART = "labels that lie apart from their images (write the tar again with --sort=name)"
LARGEST_LABEL = 10**6
_LARGEST_LABEL_BYTES = 256
_LARGEST_MEMBER_BYTES = 2**31 - 1
_LARGEST_FIELDS_BYTES = 1 << 20
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Choice:
    """What to take of each sample: the member `image`, and `label`, a field of its .json member.

    None takes the first image, and the .cls member. Dots in `label` lead into inner objects.
    """

    image: str | None = None
    label: str | None = None


PLAIN_CHOICE = Choice()


@dataclass(frozen=True)
class Sample:
    """An image in a shard: its key, first byte, size in bytes, and label (NO_LABEL if it has none)."""

    key: str
    offset: int
    size: int
    label: int | str


@dataclass
class Scan:
    """A shard's samples; how many have no image; what else was passed over, counted by reason."""

    samples: list[Sample] = field(default_factory=list)
    without_image: int = 0
    passed_over: Counter[str] = field(default_factory=Counter)


def scan(storage: Storage, shard: str, size: int, choice: Choice = PLAIN_CHOICE) -> Scan:
    """The samples of a shard of `size` bytes. Tar files that were joined by `cat` are read to the end.

    DataError if the file is compressed, cut short, or not a tar file.
    """
    file = cast(BinaryIO, io.BufferedReader(_RangedFile(storage, shard, size), _RangedFile.LARGEST))
    magic = file.read(2)
    file.seek(0)
    if magic == _GZIP:
        raise DataError(
            f"{storage.url(shard)}: compressed, and no part of it can be read alone; unpack it"
            " with gunzip (its images are already compressed)"
        )
    # Imported here, because it imports torch, which reading processes do without.
    from webdataset.tariterators import base_plus_ext, group_by_keys

    found = Scan()
    try:
        members = _followed(file, choice, list(_members(file, choice, found.passed_over)), found)
        named = [member for member in members if base_plus_ext(member.name)[0] is not None]
        found.passed_over[NO_SUFFIX] += len(members) - len(named)
        rows = ({"fname": member.name, "data": member, "__url__": shard} for member in named)
        _take(group_by_keys(rows), choice, found)
    except (tarfile.TarError, OverflowError, ValueError) as error:
        if "duplicate file name" in str(error):
            raise DataError(
                f"{storage.url(shard)}: {error.args[0]}; write the shard again with each name once"
            ) from error
        raise DataError(
            f"{storage.url(shard)}: not a complete tar file ({error}); copy it again or pack again"
        ) from error
    return found


@dataclass(frozen=True)
class _Member:
    """A file in a tar, by name and place; where it leads if it is a link; its label if it holds one."""

    name: str
    offset: int
    size: int
    link: str | None = None
    label: int | str | None = None


def _members(file: BinaryIO, choice: Choice, passed_over: Counter[str]) -> Iterator[_Member]:
    """The files and links of the tar, and of those that follow it, without hidden ones."""
    for tar in _archives(file):
        for info in tar:
            tar.members = []  # type: ignore[attr-defined]  # or it would keep them all
            if info.isdir():
                continue
            if is_hidden(info.name):
                passed_over[HIDDEN] += 1
            elif info.issym():
                folder = posixpath.dirname(info.name)
                yield _Member(info.name, 0, 0, posixpath.join(folder, info.linkname))
            elif info.islnk():
                yield _Member(info.name, 0, 0, info.linkname)
            elif info.issparse():
                passed_over[SPARSE] += 1
            elif info.size > _LARGEST_MEMBER_BYTES:
                passed_over[TOO_LARGE] += 1
            elif info.isreg():
                member = _Member(info.name, info.offset_data, info.size)
                yield _with_label(file, choice, member)
            else:
                passed_over[NOT_REGULAR] += 1


def _archives(file: BinaryIO) -> Iterator[tarfile.TarFile]:
    """The tar file, and those that lie behind its end mark; ReadError if something else lies there."""
    start: int | None = 0
    while start is not None:
        file.seek(start)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            yield tar
        # tarfile stops silently at a damaged header, and at an end mark
        file.seek(tar.offset)
        block = file.read(tarfile.BLOCKSIZE)
        if not block:
            raise tarfile.ReadError("it ends without an end mark")
        if block.strip(b"\0"):
            raise tarfile.ReadError(f"a damaged header at byte {tar.offset}")
        start = _next_block(file)


def _next_block(file: BinaryIO) -> int | None:
    """Where the next block begins that is not all zeros; None if only zeros follow."""
    place = file.tell()
    while block := file.read(_RangedFile.SMALLEST):
        zeros = len(block) - len(block.lstrip(b"\0"))
        if zeros < len(block):
            return place + zeros // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
        place += len(block)
    return None


def _with_label(file: BinaryIO, choice: Choice, member: _Member) -> _Member:
    """The member with its label, if it holds one."""
    suffix = member.name.lower().rpartition(".")[2]
    if choice.label is None and suffix == LABEL:
        label = _label(_read(file, member, _LARGEST_LABEL_BYTES))
    elif choice.label is not None and suffix == FIELDS:
        label = _label_in(_read(file, member, _LARGEST_FIELDS_BYTES), choice.label)
    else:
        return member
    return dataclasses.replace(member, label=label)


def _read(file: BinaryIO, member: _Member, limit: int) -> bytes:
    """All of a member; nothing if it is larger than any label."""
    if member.size > limit:
        return b""
    file.seek(member.offset)
    return file.read(member.size)


def _followed(file: BinaryIO, choice: Choice, members: list[_Member], found: Scan) -> list[_Member]:
    """The members with each link replaced by what it leads to in this tar."""
    if all(member.link is None for member in members):
        return members
    there = {posixpath.normpath(member.name): member for member in members}
    followed = []
    for member in members:
        target: _Member | None = member
        seen = set()
        while target is not None and target.link is not None and target.name not in seen:
            seen.add(target.name)
            target = there.get(posixpath.normpath(target.link))
        if target is None or target.link is not None:
            found.passed_over[LINKED_OUT] += 1
        elif target is member:
            followed.append(member)
        else:
            linked = _Member(member.name, target.offset, target.size)
            followed.append(_with_label(file, choice, linked))
    return followed


def _take(groups: Iterator[dict[str, Any]], choice: Choice, found: Scan) -> None:
    """Take up the samples, and count what is passed over."""
    unlabelled: set[str] = set()
    lonely: set[str] = set()
    for group in groups:
        key = printable(group["__key__"])
        members = {name: member for name, member in group.items() if not name.startswith("__")}
        label = _label_of(members)
        image = _image(members, choice.image, found.passed_over)
        if image is None and choice.image is not None and any(map(_is_image, members)):
            found.passed_over[OTHER_IMAGES] += 1
            continue
        if image is not None:
            found.samples.append(
                Sample(key, image.offset, image.size, NO_LABEL if label is None else label)
            )
        else:
            found.without_image += label is None
        if (image is None) != (label is None):
            (lonely if image is None else unlabelled).add(key)
    apart = len(lonely & unlabelled)
    found.passed_over[LABEL_APART] += apart
    found.without_image += len(lonely) - apart


def _image(members: dict[str, _Member], chosen: str | None, passed_over: Counter[str]) -> _Member | None:
    """The chosen image of a sample; else one with a plain suffix, or else one such as `left.png`."""
    images = []
    for name, member in members.items():
        if _is_image(name) or name == chosen:
            images.append(name)
        elif member.label is None:
            passed_over[_suffix(name)] += 1
    if chosen is not None:
        return members.get(chosen)
    images.sort(key=lambda name: "." in name)  # stable: plain ones come first
    passed_over[FURTHER_IMAGES] += max(0, len(images) - 1)
    return members[images[0]] if images else None


def _is_image(name: str) -> bool:
    return _suffix(name) in SUFFIXES


def _suffix(name: str) -> str:
    """The last suffix of a member, by its name within the sample."""
    return f".{name.rpartition('.')[2]}"


def _label_of(members: dict[str, _Member]) -> int | str | None:
    """The label of a sample; that of a member with a plain suffix comes first. None if it has none."""
    labels = {name: member.label for name, member in members.items() if member.label is not None}
    usable = {name: label for name, label in labels.items() if label != NO_LABEL} or labels
    return usable[min(usable, key=lambda name: "." in name)] if usable else None


def _label(text: bytes) -> int | str:
    """A number or text; NO_LABEL if it is empty, or a number that no label can be."""
    words = printable(text.strip().decode("utf-8", "surrogateescape"))
    label = whole_number(words)
    if label is None:
        return words or NO_LABEL
    return label if 0 <= label <= LARGEST_LABEL else NO_LABEL


def whole_number(text: str) -> int | None:
    """The number that the text writes, also as 3.0, as tables with gaps do; None if it is none."""
    match = re.fullmatch(r"(-?[0-9]{1,20})(\.0{1,20})?", text)
    return int(match[1]) if match else None


def _label_in(text: bytes, path: str) -> int | str:
    """The number or text in a field of a JSON object; NO_LABEL if it holds none."""
    try:
        value = json.loads(text)
        for name in path.split("."):
            value = value[name]
    except (ValueError, LookupError, TypeError, RecursionError):
        return NO_LABEL
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return NO_LABEL
    data = str(value).encode("utf-8", "surrogatepass")
    if len(data) > _LARGEST_LABEL_BYTES or (isinstance(value, float) and not value.is_integer()):
        return NO_LABEL
    return _label(data)


class _RangedFile(io.RawIOBase):
    """An object as a file: each read fetches more than the last one, until a seek jumps far ahead."""

    SMALLEST, LARGEST = 1 << 16, 1 << 22
    NEAR = 1 << 20

    def __init__(self, storage: Storage, key: str, size: int):
        self._storage, self._key, self._size = storage, key, size
        self._position = self._end = 0
        self._ahead = self.SMALLEST

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to `offset` from the start, the current position or the end."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}
        self._position = start[whence] + offset
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        """Fill some of the buffer with what comes next."""
        near = 0 <= self._position - self._end <= self.NEAR
        self._ahead = min(2 * self._ahead, self.LARGEST) if near else self.SMALLEST
        count = min(self._ahead, len(buffer), self._size - self._position)
        if count <= 0:
            return 0
        data = self._storage.get(self._key, self._position, count)
        buffer[: len(data)] = data
        self._position += len(data)
        self._end = self._position
        return len(data)
