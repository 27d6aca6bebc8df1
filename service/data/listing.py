"""Which files of a folder or an archive are images, and which classes their folders name."""

import errno
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from service.data.image import SUFFIXES
from service.errors import DataError
from service.storage.links import Folders

SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
TABLES = frozenset({".json", ".jsonl", ".csv", ".tsv"})
_HIDDEN = "hidden"
_SPECIAL = "no regular file"
_LINKED = "a link to a folder that is read anyway"
_LOOP = "a link to itself"
_NO_SUFFIX = "no suffix"


@dataclass
class Listing:
    """Images by their path below the folder or in the archive, in order; what else is there, counted.

    `tables` are files among the latter that may hold labels.
    """

    members: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    tables: list[str] = field(default_factory=list)

    def add(self, member: str, regular: bool = True) -> None:
        """Take up a file, or count why it is left out: the one rule for all kinds of sources."""
        path = PurePosixPath(member)
        if is_hidden(member):
            self.left_out[_HIDDEN] += 1
        elif not regular:
            self.left_out[_SPECIAL] += 1
        elif path.suffix.lower() in SUFFIXES:
            self.members.append(member)
        else:
            self.left_out[path.suffix.lower() or _NO_SUFFIX] += 1
            if path.suffix.lower() in TABLES:
                self.tables.append(member)

    def sort(self) -> None:
        """Bring the images in the order of their folders' names, then of their own."""
        self.members.sort(key=lambda member: member.split("/"))


@dataclass(frozen=True)
class Classes:
    """A label for each image, the names of the labels, and what the user should know of them."""

    labels: list[int]
    names: list[str]
    notes: tuple[str, ...] = ()


def is_hidden(member: str) -> bool:
    """Whether a path leads to what systems keep for themselves: dot files, macOS's own."""
    parts = PurePosixPath(member).parts
    return any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in parts)


def list_folder(folder: Path) -> Listing:
    """The images below a folder. Links to folders outside are followed, each folder once."""
    listing = Listing()
    for entry, member in _walk(folder, "", Folders(folder), listing):
        listing.add(member, regular=entry.is_file() or _is_broken(entry))
    listing.sort()
    return listing


def _walk(
    folder: Path | str, prefix: str, folders: Folders, listing: Listing
) -> Iterator[tuple[os.DirEntry, str]]:
    """Everything below that is no folder, and its path from the root."""
    try:
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be listed ({error.strerror}); check its permissions"
        ) from error
    for entry in entries:
        member = f"{prefix}{entry.name}"
        if _is_loop(entry):
            listing.left_out[_LOOP] += 1
        elif not entry.is_dir():
            yield entry, member
        elif entry.name.startswith("."):
            listing.left_out[_HIDDEN] += 1
        elif folders.enter(entry.path, entry.is_symlink()):
            yield from _walk(entry.path, f"{member}/", folders, listing)
        else:
            listing.left_out[_LINKED] += 1


def _is_loop(entry: os.DirEntry) -> bool:
    """Whether it is a link that leads to itself, by way of others or not."""
    try:
        entry.is_dir()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def _is_broken(entry: os.DirEntry) -> bool:
    """Whether it is a link to nothing, which is named later, as an image that cannot be read."""
    return entry.is_symlink() and not os.path.exists(entry.path)


def wrapper(listing: Listing, files_of_labels: Sequence[str]) -> str:
    """The one folder, with its slash, that all images lie in; "" if there is none.

    A folder whose images lie right in it is a class, unless one of the `files_of_labels` is there, too.
    Where such a file lies beside the folder, its paths begin there.
    """
    if not set(files_of_labels).isdisjoint(listing.tables):
        return ""
    tops = {member.partition("/")[0] for member in listing.members}
    if len(tops) != 1:
        return ""
    top = f"{tops.pop()}/"
    labelled = not {f"{top}{name}" for name in files_of_labels}.isdisjoint(listing.tables)
    return top if labelled or all(member.count("/") >= 2 for member in listing.members) else ""


def classes_of_folders(where: str, members: Sequence[str]) -> Classes:
    """Classes by the top folders; DataError if those are splits, or if images lie beside them."""
    tops = [member.partition("/")[0] if "/" in member else "" for member in members]
    found = set(tops)
    if len(found) > 1:
        _refuse_mixture(where, members, found)
    names = in_order(found)
    number = {name: i for i, name in enumerate(names)}
    return Classes([number[top] for top in tops], names, tuple(_notes(members, names)))


def _refuse_mixture(where: str, members: Sequence[str], tops: set[str]) -> None:
    if "" in tops:
        beside = [member for member in members if "/" not in member]
        raise DataError(
            f"{where}: {len(beside)} images lie beside the folders of the classes, such as {beside[0]};"
            " move them into a class's folder, or elsewhere"
        )
    if all(top.lower() in SPLITS for top in tops):
        listed = ", ".join(sorted(tops))
        raise DataError(
            f"{where}: the folders on top ({listed}) are splits, not classes; pack one of them alone"
            " (pack holds images out itself: --held-out)"
        )


def in_order(names: set[str]) -> list[str]:
    """The classes: whole numbers by value, so that 0 … n − 1 are their own labels; else by name."""
    if all(_is_number(name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit() and len(name) <= 18


def _notes(members: Sequence[str], names: list[str]) -> Iterator[str]:
    if all(_is_number(name) for name in names) and [int(n) for n in names] != list(range(len(names))):
        yield (
            f"the classes' folders are numbers, from {names[0]} to {names[-1]}; their labels are"
            f" 0 … {len(names) - 1}, in this order"
        )
    deeper = [member for member in members if member.count("/") >= 2]
    if deeper:
        yield (
            f"{len(deeper)} images lie in folders within a class's folder, such as {deeper[0]};"
            " the folder on top is their class"
        )
