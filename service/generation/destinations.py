"""Where separate images go: a folder of PNGs, a zip archive of them, an .npz, or shards.

Everything is written as it is drawn, so that memory does not grow with the number of images. A file
appears whole or not at all. Imports no torch.
"""

import contextlib
import io
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.data.index import About
from service.data.indexing import CLAIM_KEY, HELD_OUT
from service.data.labels import DATASET, UNFINISHED
from service.data.packing import Part, made_ahead, write_index_of, write_shard
from service.errors import UsageError
from service.recording import pictures
from service.recording.pictures import Pixels
from service.storage import MissingError, Writer, is_s3, open_storage, split_address
from service.storage.digest import DigestingFile
from service.text import some_of

Format = Literal["folder", "zip", "npz", "shards"]
Numbered = Iterator[tuple[int, Pixels]]
"""Images uint8 [r, r, c] with their numbers, in turn."""

ARCHIVES: dict[str, Format] = {".zip": "zip", ".npz": "npz"}
FILES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".npy", ".tar", ".gz", ".tgz"}
"""Suffixes of files that no format writes; a folder of such a name would be a slip."""
WRITERS = 16
"""Threads that encode and write: writing to disk or S3 is mostly waiting."""
ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest there is: the same command gives the same file
LABELS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class ImageSet:
    """What is drawn: `count` images from number `first`, of `side` pixels, and their labels.

    Image i has the label `labels[i mod len(labels)]`. `conditional` says if the labels mean anything,
    `classes` are their names, if they have any; `source` is the checkpoint's address.
    """

    first: int
    count: int
    side: int
    channels: Literal[1, 3]
    labels: tuple[int, ...]
    conditional: bool
    classes: tuple[str, ...]
    source: str

    def label(self, number: int) -> int:
        """The label of an image."""
        return self.labels[number % len(self.labels)]

    def label_pieces(self) -> Iterator[NDArray[np.int64]]:
        """All labels in turn, in pieces that fit into memory."""
        labels, end = np.array(self.labels, np.int64), self.first + self.count
        for start in range(self.first, end, LABELS_AT_ONCE):
            yield labels[np.arange(start, min(end, start + LABELS_AT_ONCE)) % len(labels)]


def format_of(out: str, chosen: Format | None) -> Format:
    """The chosen format, or else the one of the suffix; ValueError if it does not fit."""
    suffix = Path(out).suffix.lower()
    if suffix in FILES:
        raise ValueError(
            f"--out {out}: images are written to a folder, a .zip or an .npz; name one of these"
        )
    by_suffix = ARCHIVES.get(suffix, "folder")
    fits = {"folder", "shards"} if by_suffix == "folder" else {by_suffix}
    if chosen is not None and chosen not in fits:
        expected = f"a file .{chosen}" if chosen in ARCHIVES.values() else "a folder"
        raise ValueError(f"--out {out}: --format {chosen} writes {expected}; change one of them")
    if by_suffix != "folder":
        try:
            split_address(out)
        except ValueError as error:
            raise ValueError(f"--out {error}") from error
    return chosen or by_suffix


class Destination:
    """A place for one set of images.

    `ahead` images wait in memory, at most, to be encoded and written; a shard holds `shard_samples`.
    """

    def __init__(self, out: str, kind: Format, retry_s: float, ahead: int, shard_samples: int):
        self.out, self.kind, self.ahead, self.shard_samples = out, kind, ahead, shard_samples
        self.is_file = kind in ARCHIVES.values()
        folder, self.name = split_address(out) if self.is_file else (out, "")
        self.storage = open_storage(folder, retry_s)

    def check(self) -> None:
        """UsageError if something lies there that would be lost, or in the way."""
        place = None if is_s3(self.storage.address) else Path(self.storage.address, self.name)
        for above in place.parents if place else ():
            if above.exists() and not above.is_dir():
                raise UsageError(f"{self.out}: {above} is a file; name a folder")
        if self.is_file:
            if place and place.is_dir():
                raise UsageError(f"{self.out}: a folder; name a file in it")
            return
        if place and place.exists() and not place.is_dir():
            raise UsageError(f"{self.out}: a file; name a new folder")
        if present := list(self.storage.sizes()):
            interrupted = UNFINISHED in present or CLAIM_KEY in present
            raise UsageError(
                f"{self.out}: not empty, it holds {some_of(present)};"
                + (" an earlier command was interrupted; delete it, or" if interrupted else "")
                + " choose a new folder"
                + (", with --start for the images that are missing" if interrupted else "")
            )

    def write(self, images: ImageSet, drawn: Numbered) -> int:
        """Write all images, and return how many bytes; nothing is drawn if nothing can be written."""
        with self._claimed(), ThreadPoolExecutor(WRITERS, thread_name_prefix="write") as threads:
            return _WRITERS[self.kind](self, images, drawn, threads)

    def encoded(self, drawn: Numbered, threads: ThreadPoolExecutor) -> Iterator[tuple[int, bytes]]:
        """The images as PNGs, in turn."""
        return made_ahead(lambda one: (one[0], pictures.png(one[1])), drawn, threads, self.ahead)

    @contextlib.contextmanager
    def file(self) -> Iterator[DigestingFile]:
        """The file to write, which counts its bytes; it appears once the context ends without error."""
        with self.storage.writer(self.name) as writer:
            yield DigestingFile(writer)

    @contextlib.contextmanager
    def _claimed(self) -> Iterator[None]:
        """Write an empty object there, so that it is found now if nothing can be written.

        It stays in a folder that does not become whole.
        """
        claims: dict[Format, str] = {"folder": UNFINISHED, "shards": CLAIM_KEY}
        claim = claims.get(self.kind, f"{self.name}.{UNFINISHED}")
        try:
            self.storage.put(claim, b"")
        except MissingError as error:
            raise UsageError(f"{self.out}: no folder can be made there; name another") from error
        if self.is_file:
            self.storage.delete([claim])
        yield
        self.storage.delete([claim])


def _write_folder(
    place: Destination, images: ImageSet, drawn: Numbered, threads: ThreadPoolExecutor
) -> int:
    """One PNG an image, named by its number; labels, if there are any, in StyleGAN's dataset.json."""

    def put(one: tuple[int, Pixels]) -> int:
        data = pictures.png(one[1])
        place.storage.put(_png_name(one[0]), data)
        return len(data)

    size = sum(made_ahead(put, drawn, threads, place.ahead))
    if images.conditional:
        with place.storage.writer(DATASET) as writer:
            size += _write_labels(writer, images)
    return size


def _write_zip(
    place: Destination, images: ImageSet, drawn: Numbered, threads: ThreadPoolExecutor
) -> int:
    """The same files in a zip archive, not compressed again."""
    with place.file() as file:
        with zipfile.ZipFile(file, "w") as archive:
            for number, data in place.encoded(drawn, threads):
                archive.writestr(_member(_png_name(number)), data)
            if images.conditional:
                with archive.open(_member(DATASET), "w") as member:
                    _write_labels(member, images)
        return file.count


def _write_npz(place: Destination, images: ImageSet, drawn: Numbered, _: ThreadPoolExecutor) -> int:
    """`images`, uint8 [n, r, r, c], and `labels`, int64 [n], as `numpy.load` reads them."""
    shape = (images.count, images.side, images.side, images.channels)
    with place.file() as file:
        with zipfile.ZipFile(file, "w") as archive:
            with archive.open(_member("images.npy"), "w", force_zip64=True) as member:
                member.write(_npy_header("|u1", shape))
                for _number, image in drawn:
                    member.write(image.tobytes())
            with archive.open(_member("labels.npy"), "w", force_zip64=True) as member:
                member.write(_npy_header("<i8", (images.count,)))
                for labels in images.label_pieces():
                    member.write(labels.astype("<i8").tobytes())
        return file.count


def _write_shards(
    place: Destination, images: ImageSet, drawn: Numbered, threads: ThreadPoolExecutor
) -> int:
    """Shards as `pack` writes them, each named by its first image, with an index."""
    numbered = ((number, images.label(number), data) for number, data in place.encoded(drawn, threads))
    parts = []
    groups = groupby(numbered, lambda sample: (sample[0] - images.first) // place.shard_samples)
    for group, samples in groups:
        part = Part("", f"shard-{images.first + group * place.shard_samples:08d}.tar")
        write_shard(place.storage, part, samples, "png")
        parts.append(part)
    about = About(
        source=images.source,
        held_out=HELD_OUT,
        resolution=images.side,
        channels=images.channels,
        classes=images.classes,
    )
    write_index_of(place.storage, parts, about, HELD_OUT)
    return sum(part.size for part in parts)


_WRITERS: dict[Format, Callable[[Destination, ImageSet, Numbered, ThreadPoolExecutor], int]] = {
    "folder": _write_folder,
    "zip": _write_zip,
    "npz": _write_npz,
    "shards": _write_shards,
}


def _png_name(number: int) -> str:
    return f"{number:08d}.png"


def _member(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name, ZIP_TIME)
    member.external_attr = 0o644 << 16
    return member


def _npy_header(kind: str, shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    about = {"descr": kind, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, about)
    return header.getvalue()


def _write_labels(writer: Writer, images: ImageSet) -> int:
    """Write StyleGAN's list of labels, and return its bytes."""
    size, number, separator = 0, images.first, '{"labels": [\n'
    for labels in images.label_pieces():
        lines = []
        for label in labels.tolist():
            lines.append(f'{separator}["{_png_name(number)}", {label}]')
            number, separator = number + 1, ",\n"
        piece = "".join(lines).encode()
        writer.write(piece)
        size += len(piece)
    writer.write(b"\n]}\n")
    return size + 4
