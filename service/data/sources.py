"""Sources of images to pack: digits, folders, zip archives, IDX files."""

import dataclasses
import gzip
import hashlib
import io
import json
import posixpath
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from service.data.image import BACKGROUND, SUFFIXES, File, Mode, one_image, read_image
from service.data.index import About
from service.data.labels import (
    DATASET,
    LARGEST_FILE_BYTES,
    METADATA,
    UNFINISHED,
    Read,
    classes_of_file,
    tables_read,
    unread,
)
from service.data.listing import Classes, Listing, classes_of_folders, list_folder, wrapper
from service.errors import DataError, UsageError
from service.random import philox
from service.text import printable

DIGITS, STACKED_DIGITS = "digits", "stacked-digits"
EMBEDDED = (DIGITS, STACKED_DIGITS)
"""Sources that need no files."""
STACKED_IMAGES = 50_000
STACKED_CLASSES = tuple(f"{number:03}" for number in range(1000))
"""Names of the classes of images whose channels show three digits: data with other names are others."""

FILES_OF_LABELS = (DATASET, *METADATA)


@dataclass(frozen=True)
class ImageSource:
    """Images by number: `names`, `labels` and `load` of each, and the names of the classes.

    Names are for people: bytes that are not UTF-8 are escaped. `marks`, such as sizes or checksums,
    distinguish an image from a later one of the same name. `left_out` counts the files that are no
    images, by reason or suffix; `notes` say what the user should know of the classes.
    """

    names: Sequence[str]
    labels: Sequence[int]
    classes: list[str]
    open: Callable[[int], File]
    marks: Sequence[int] = ()
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def load(self, number: int, mode: Mode, background: str = BACKGROUND) -> Image.Image:
        """The picture, by `read_image`; DataError if it cannot be read. Callable from any thread."""
        with one_image():
            return read_image(self.open(number), mode, background)

    def digest(self) -> str:
        """A digest of names, labels and marks: another list of images is another source."""
        labels = [int(label) for label in self.labels]
        listed = json.dumps([list(self.names), labels, list(self.marks)])
        return hashlib.sha256(listed.encode()).hexdigest()[:16]


def open_source(source: str, labels: str | None = None, field: str | None = None) -> ImageSource:
    """The source of this name, folder or file; UsageError or DataError if it is not one.

    `labels` is a file of labels for an IDX file, `field` names the labels in a folder's metadata.
    """
    path = Path(source).expanduser()
    is_zip = path.is_file() and zipfile.is_zipfile(path)
    if field and (source in EMBEDDED or not (is_zip or path.is_dir())):
        raise UsageError(f"--label {field}: only a folder or archive with metadata has such a field")
    if labels and (source in EMBEDDED or not path.is_file()):
        raise UsageError(f"--labels {labels}: only an IDX file of images takes a file of labels")
    if source == DIGITS:
        return _digits()
    if source == STACKED_DIGITS:
        return _stacked_digits()
    if path.is_dir():
        return _folder(path, field)
    if is_zip:
        return _zip(path, field)
    if path.suffix.lower() == ".zip" and path.is_file():
        raise DataError(f"{path}: the zip archive is incomplete or damaged; copy it again")
    if path.is_file() and _is_tar(path):
        raise UsageError(
            f"{path}: a tar file; unpack it to pack its images, or train on it as it is, if it is a"
            f" webdataset shard: --data.url {path.parent}"
        )
    if path.is_file():
        return _idx(path, Path(labels) if labels else None)
    raise UsageError(
        f"{source}: no such folder or file; give one, or `digits` or `stacked-digits`; see --help"
    )


def _is_tar(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(262)[257:] == b"ustar"


def _digits() -> ImageSource:
    images, labels = _load_digits()
    return _in_memory([f"digit {i}" for i in range(len(images))], images, labels)


def _stacked_digits() -> ImageSource:
    """Three digits, drawn evenly, as each image's channels: 1,000 modes (Metz et al. 2017, §3.3)."""
    images, labels = _load_digits()
    words = philox.words(philox.key(STACKED_DIGITS), np.arange(STACKED_IMAGES), 3)
    drawn = philox.integers(words, len(images))
    return ImageSource(
        ["digits {}, {} and {}".format(*row) for row in drawn],
        (labels[drawn] @ [100, 10, 1]).tolist(),
        [*STACKED_CLASSES],
        lambda i: Image.fromarray(np.ascontiguousarray(images[drawn[i]].transpose(1, 2, 0))),
    )


def shows_stacked_digits(about: About) -> bool:
    """Whether each channel of a data set's images shows a digit, and its classes are their triples."""
    return about.channels == 3 and about.classes == STACKED_CLASSES


def _load_digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits, uint8 [1797, 8, 8], and which they are [1797]."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.minimum(bunch.images * 16, 255).astype(np.uint8), bunch.target  # 0 … 16 ink to 0 … 255


def _folder(path: Path, field: str | None) -> ImageSource:
    if (path / UNFINISHED).exists():
        raise UsageError(
            f"{path}: holds {UNFINISHED}, so its drawing was interrupted; draw it anew, or delete that"
            " file to pack the images that are there, without labels"
        )
    listing = list_folder(path)
    top = wrapper(listing, FILES_OF_LABELS)
    classes = _classes(str(path), listing, top, lambda name: _bytes_of(path / name), field)
    files = [path / member for member in listing.members]
    sizes = [file.stat().st_size if file.exists() else 0 for file in files]
    return _listed([str(file) for file in files], classes, lambda i: files[i], sizes, listing)


def _listed(
    names: Sequence[str],
    classes: Classes,
    opened: Callable[[int], File],
    marks: Sequence[int],
    listing: Listing,
) -> ImageSource:
    """Images with labels; names from elsewhere are made fit for people."""
    return ImageSource(
        [printable(name) for name in names],
        classes.labels,
        [printable(name) for name in classes.names],
        opened,
        marks,
        listing.left_out,
        tuple(printable(note) for note in classes.notes),
    )


def _zip(path: Path, field: str | None) -> ImageSource:
    archive, listing = zipfile.ZipFile(path), Listing()
    infos: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        # some tools of Windows write backslashes
        name = posixpath.normpath(info.filename.replace("\\", "/"))
        if info.is_dir() or info.filename.endswith("\\"):
            continue
        if name in infos:
            raise DataError(f"{path}: holds {printable(name)} twice; write the archive again")
        infos[name] = info
        listing.add(name)
    listing.sort()

    def read(member: str) -> bytes:
        size = infos[member].file_size
        if size > LARGEST_FILE_BYTES:
            raise DataError(f"{path}/{member}: {size} bytes, above the limit of {LARGEST_FILE_BYTES}")
        try:
            return archive.read(infos[member])
        except Exception as error:  # zipfile's own, zlib's, lzma's, and others for what is encrypted
            raise DataError(f"{path}/{member}: cannot be unpacked ({error})") from error

    top = wrapper(listing, FILES_OF_LABELS)
    classes = _classes(str(path), listing, top, read, field)

    def opened(number: int) -> io.BytesIO:
        return io.BytesIO(read(listing.members[number]))

    names = [f"{path}/{member}" for member in listing.members]
    return _listed(names, classes, opened, [infos[m].CRC for m in listing.members], listing)


def _classes(where: str, listing: Listing, top: str, read: Read, field: str | None) -> Classes:
    """Label of each image and the classes' names, from a file of labels or else from the folders."""
    if not listing.members:
        rest = f"; what is there: {counted(listing.left_out)}" if listing.left_out else ""
        raise DataError(f"{where}: holds no images ({', '.join(sorted(SUFFIXES))}){rest}")
    members = [member.removeprefix(top) for member in listing.members]
    tables = [table.removeprefix(top) for table in listing.tables if table.startswith(top)]
    inner = where if not top else f"{where}/{top.rstrip('/')}"
    for table in tables_read(tables):
        listing.left_out[Path(table).suffix.lower()] -= 1
    listed = classes_of_file(inner, members, tables, lambda name: read(top + name), field)
    if listed is None and field is not None:
        raise UsageError(f"--label {field}: {where} has no {' or '.join(METADATA)}; leave it out")
    classes = listed or classes_of_folders(where, members)
    beside = [table for table in listing.tables if not table.startswith(top)]
    return replace(classes, notes=(*classes.notes, *unread([*tables, *beside], listed)))


def _bytes_of(file: Path) -> bytes:
    try:
        size = file.stat().st_size
        if size > LARGEST_FILE_BYTES:
            raise DataError(f"{file}: {size} bytes, above the limit of {LARGEST_FILE_BYTES}")
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); check its permissions") from error


def counted(left_out: Mapping[str, int]) -> str:
    """What was left out, in words: "3 hidden, 2 .txt"."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()) if count)


def _idx(path: Path, labels_path: Path | None) -> ImageSource:
    beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    images = read_idx(path)
    labels = read_idx(labels_path or beside)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or not images.size:
        raise DataError(
            f"{path}: images of shape {images.shape} do not match labels of shape {labels.shape};"
            " give the right --labels FILE"
        )
    return _in_memory([f"image {i}" for i in range(len(images))], images, labels)


def _in_memory(names: list[str], images: np.ndarray, labels: np.ndarray) -> ImageSource:
    classes = [str(i) for i in range(int(labels.max()) + 1)]
    marks = [zlib.crc32(image.tobytes()) for image in images]
    return ImageSource(names, labels.tolist(), classes, lambda i: Image.fromarray(images[i]), marks)


def read_idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes, gzipped or not (LeCun et al., the MNIST page)."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        zeros, kind, dims = struct.unpack(">HBB", data[:4])
        if zeros != 0 or kind != 8 or dims < 1:
            raise ValueError("its header does not announce unsigned bytes")
        shape = struct.unpack(f">{dims}I", data[4 : 4 + 4 * dims])
        return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; give --labels FILE for an IDX pair") from error
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise DataError(f"{path}: not an IDX file: {error}") from error
