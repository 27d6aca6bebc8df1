"""Packs images into shuffled WebDataset shards, with an index written last.

The same recipe gives the same bytes. A pack that was killed goes on: finished shards stay.
"""

import contextlib
import hashlib
import io
import json
import logging
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Literal, TypeVar

import numpy as np
import pyarrow as pa
from PIL import Image, ImageColor
from tqdm import tqdm

from service.data.decode import decode
from service.data.image import Mode
from service.data.index import INDEX_KEY, About, Index, is_held_out, read_index, write_index
from service.data.indexing import CLAIM_KEY, PACKING, check_shards, make_index, write_marks
from service.data.sources import ImageSource
from service.data.stream import read_samples
from service.documents import Count, Document
from service.errors import DataError, UsageError
from service.random import philox
from service.storage import Storage, open_storage
from service.storage.digest import DigestingFile
from service.storage.lock import RunLock

log = logging.getLogger(__name__)

T = TypeVar("T")
Made = TypeVar("Made")

MODES: dict[str, Mode] = {"gray": "L", "rgb": "RGB"}
CHANNELS: dict[str, Literal[1, 3]] = {"gray": 1, "rgb": 3}
SUFFIXES = {"jpeg": "jpg", "png": "png"}
TAR_BLOCK = 512
_AHEAD = 8
_PIECE_BYTES = 8 << 20


@dataclass(frozen=True)
class Recipe:
    """Everything that the shards' bytes depend on, besides the source's images."""

    source: str
    source_digest: str
    resolution: int
    base: int
    channels: str
    background: str
    encoding: str
    quality: int
    seed: int
    shard_samples: int
    held_out: float

    def __post_init__(self) -> None:
        multiple = self.resolution // self.base
        if self.resolution % self.base or multiple & (multiple - 1):
            raise UsageError(
                f"--resolution {self.resolution}: not {self.base} times a power of two;"
                f" use {self.base * 2 ** max(0, multiple.bit_length() - 1)}, or another --base"
            )
        if not 0 <= self.held_out < 1:
            raise UsageError(f"--held-out {self.held_out}: give a share from 0 to below 1")
        try:
            ImageColor.getrgb(self.background)
        except ValueError as error:
            raise UsageError(
                f"--background {self.background}: not a colour; give a name such as white, or #rrggbb"
            ) from error

    def digest(self) -> str:
        """A digest that distinguishes this recipe from others."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()


def prepare(image: Image.Image, resolution: int) -> Image.Image:
    """The centred square of an image, resized with Lanczos."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return image.resize((resolution, resolution), Image.Resampling.LANCZOS, box=box)


def encode(image: Image.Image, encoding: str, quality: int) -> bytes:
    """The image as a PNG, or as a JPEG of full colour resolution."""
    buffer = io.BytesIO()
    if encoding == "jpeg":
        image.save(buffer, "JPEG", quality=quality, subsampling=0)
    else:
        image.save(buffer, "PNG")
    return buffer.getvalue()


class Unreadable:
    """Counts and names the images that could not be read, up to the user's limit."""

    def __init__(self, limit: int):
        self.limit = limit
        self.names: list[str] = []

    def add(self, names: list[str]) -> None:
        """Add unreadable images; DataError past the limit."""
        self.names += names
        if len(self.names) > self.limit:
            raise DataError(
                f"{len(self.names)} unreadable images, but --max-unreadable is {self.limit};"
                f" the last is {self.names[-1]}"
            )


@dataclass
class Part:
    """A finished shard: the recipe's digest, its samples, and its object."""

    recipe: str
    name: str
    size: Count = 0
    etag: str = ""
    digest: str = ""
    keys: list[str] = field(default_factory=list)
    labels: list[Count] = field(default_factory=list)
    offsets: list[Count] = field(default_factory=list)
    sizes: list[Count] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not len(self.keys) == len(self.labels) == len(self.offsets) == len(self.sizes):
            raise ValueError("its keys, labels, offsets and sizes differ in length")


class PartDocument(Document):
    """What packing writes beside each finished shard, so that a later call goes on from there."""

    version: Literal[2] = 2
    part: Part


def pack(
    recipe: Recipe, source: ImageSource, storage: Storage, max_unreadable: int, workers: int
) -> Index:
    """Write the shards, then the index, and return it; the same recipe gives the same bytes.

    `workers` threads prepare images. Shards that an earlier, unfinished call completed stay.
    """
    _refuse_foreign(storage)
    with _alone(storage):
        storage.put(CLAIM_KEY, b"")
        storage.sweep("shard-")
        index = _pack(recipe, source, storage, max_unreadable, workers)
    storage.delete(storage.sizes(PACKING))
    storage.sweep(PACKING)
    return index


def check_readable(source: ImageSource, address: str) -> None:
    """DataError if the source at `address` has no image that can be read."""
    for number in range(len(source.names)):
        with contextlib.suppress(DataError):
            source.load(number, "RGB")
            return
    raise DataError(f"{address}: no image could be read; check its files")


@contextlib.contextmanager
def _alone(storage: Storage) -> Iterator[None]:
    """LockError if another pack is at work on this destination."""
    lock = RunLock(open_storage(f"{storage.address}/{PACKING.rstrip('/')}", storage.retry_s))
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _refuse_foreign(storage: Storage) -> None:
    """UsageError if there are shards that no pack has written or begun to write."""
    entries = storage.entries()
    shards = [key for key in entries if key.endswith(".tar")]
    if shards and INDEX_KEY not in entries and CLAIM_KEY not in entries:
        raise UsageError(
            f"{storage.address}: holds {len(shards)} shards that pack did not write, such as"
            f" {shards[0]}; choose another destination, or --overwrite"
        )


def _pack(
    recipe: Recipe, source: ImageSource, storage: Storage, max_unreadable: int, workers: int
) -> Index:
    order = philox.permutation(philox.key("pack", recipe.seed), len(source.names))
    chunks = np.split(order, range(recipe.shard_samples, len(order), recipe.shard_samples))
    chunk_of = {f"shard-{i:06d}.tar": chunk.tolist() for i, chunk in enumerate(chunks)}
    parts = _finished(storage, recipe)
    unreadable = Unreadable(max_unreadable)
    for part in parts.values():
        unreadable.add(part.unreadable)
    missing = [name for name in chunk_of if name not in parts]
    done = len(order) - sum(len(chunk_of[name]) for name in missing)
    with (
        ThreadPoolExecutor(workers, thread_name_prefix="prepare") as threads,
        tqdm(desc="packing", total=len(order), initial=done, unit=" images", disable=None) as progress,
    ):
        numbers = (number for name in missing for number in chunk_of[name])
        images = _images(recipe, source, numbers, threads, _AHEAD * workers)
        for name in missing:
            counted = _progressing(zip(chunk_of[name], images, strict=False), progress)
            parts[name] = _write_shard(recipe, source, storage, name, counted)
            unreadable.add(parts[name].unreadable)
            storage.put(f"{PACKING}{name}.json", PartDocument(part=parts[name]).to_bytes())
    return _finish(recipe, source, storage, [parts[name] for name in chunk_of])


def _progressing(images: Iterable[T], progress: tqdm) -> Iterator[T]:
    for image in images:
        yield image
        progress.update()


def _finished(storage: Storage, recipe: Recipe) -> dict[str, Part]:
    """Finished shards of this recipe that are unchanged, by name."""
    entries = storage.entries()
    parts = {}
    for key in entries:
        if not key.startswith(f"{PACKING}shard-"):
            continue
        try:
            part = PartDocument.from_bytes(storage.get(key), storage.url(key)).part
        except DataError as error:
            log.warning("event=shard_packed_anew reason=%s", error)
            continue
        entry = entries.get(part.name)
        same = entry is not None and (entry.size, entry.etag) == (part.size, part.etag)
        if part.recipe == recipe.digest() and (same or not part.keys):
            parts[part.name] = part
    return parts


def _images(
    recipe: Recipe, source: ImageSource, numbers: Iterable[int], threads: ThreadPoolExecutor, ahead: int
) -> Iterator[bytes | DataError]:
    """The encoded images in turn, `ahead` of them in preparation; an error for an unreadable one."""

    def make(number: int) -> bytes | DataError:
        try:
            image = source.load(number, MODES[recipe.channels], recipe.background)
            return encode(prepare(image, recipe.resolution), recipe.encoding, recipe.quality)
        except DataError as error:
            return error

    return made_ahead(make, numbers, threads, ahead)


def made_ahead(
    make: Callable[[T], Made], items: Iterable[T], threads: ThreadPoolExecutor, ahead: int
) -> Iterator[Made]:
    """`make(item)` of each item in turn, `ahead` of them in preparation by the threads."""
    made: deque[Future[Made]] = deque()
    for item in items:
        made.append(threads.submit(make, item))
        if len(made) > ahead:
            yield made.popleft().result()
    while made:
        yield made.popleft().result()


def _write_shard(
    recipe: Recipe,
    source: ImageSource,
    storage: Storage,
    name: str,
    images: Iterable[tuple[int, bytes | DataError]],
) -> Part:
    """Upload the shard of those images that can be read."""
    part = Part(recipe.digest(), name)

    def readable() -> Iterator[tuple[int, int, bytes]]:
        for number, image in images:
            if isinstance(image, DataError):
                part.unreadable.append(f"{source.names[number]}: {image}")
                tqdm.write(f"unreadable: {part.unreadable[-1]}", file=sys.stderr)
            else:
                yield number, int(source.labels[number]), image

    write_shard(storage, part, readable(), SUFFIXES[recipe.encoding])
    return part


def write_shard(
    storage: Storage, part: Part, samples: Iterable[tuple[int, int, bytes]], suffix: str
) -> None:
    """Upload a shard while it is made, and enter it into `part`; it appears only if all of it succeeds.

    A sample is its number, its label and its encoded image, a file with this suffix.
    """
    with storage.writer(part.name) as writer:
        import webdataset  # imports torch, which --help and usage errors do not need

        file = DigestingFile(writer)
        with webdataset.TarWriter(file, encoder=False, mtime=0) as tar:
            for number, label, image in samples:
                key = f"{number:08d}"
                tar.write({"__key__": key, "cls": str(label).encode(), suffix: image})
                part.keys.append(key)
                part.labels.append(label)
                part.sizes.append(len(image))
                # Members of a sample are written in the order of their names: the image comes last.
                part.offsets.append(tar.tarstream.offset - -(-len(image) // TAR_BLOCK) * TAR_BLOCK)
    part.size, part.digest = file.count, file.sha256.hexdigest()
    part.etag = storage.entries(part.name)[part.name].etag


def _finish(recipe: Recipe, source: ImageSource, storage: Storage, parts: list[Part]) -> Index:
    """Write the index of all shards, and delete shards that do not belong to it."""
    full = [part for part in parts if part.keys]
    if not full:
        raise DataError(f"{recipe.source}: no image could be read")
    names = {part.name for part in full}
    storage.delete(k for k in storage.sizes("shard-") if k.endswith(".tar") and k not in names)
    about = About(
        source=recipe.source,
        held_out=recipe.held_out,
        resolution=recipe.resolution,
        channels=CHANNELS[recipe.channels],
        classes=tuple(source.classes),
        unreadable=tuple(name for part in parts for name in part.unreadable),
        recipe=asdict(recipe),
    )
    return write_index_of(storage, full, about, recipe.held_out)


def write_index_of(storage: Storage, parts: Sequence[Part], about: About, held_out: float) -> Index:
    """Write the index of these shards, with this share held out, and return it."""
    keys = [key for part in parts for key in part.keys]
    index = Index(
        {part.name: part.size for part in parts},
        np.repeat(np.arange(len(parts), dtype=np.int32), [len(part.keys) for part in parts]),
        np.array([offset for part in parts for offset in part.offsets], np.int64),
        np.array([size for part in parts for size in part.sizes], np.int32),
        np.array([label for part in parts for label in part.labels], np.int32),
        np.array([is_held_out(key, held_out) for key in keys], bool),
        pa.array(keys, pa.string()),
        {part.name: part.etag for part in parts if part.etag},
        about,
        {part.name: part.digest for part in parts if part.digest},
    )
    write_index(storage, index)
    write_marks(storage, index, storage.entries("shard-"))
    return index


def verify(storage: Storage, recipe: Recipe, index: Index, workers: int) -> int:
    """Read everything back, tar headers and every image to its last pixel; returns how many images.

    DataError names what differs.
    """
    check_shards(storage, index)
    made = make_index(storage, storage.entries(), recipe.held_out)
    if made.fingerprint() != index.fingerprint():
        raise DataError(
            f"{storage.address}: the index does not match the shards; pack again with --overwrite"
        )
    shape = (recipe.resolution, recipe.resolution, CHANNELS[recipe.channels])

    def check(rows: np.ndarray) -> int:
        out = np.empty(shape, np.uint8)
        for row, data in zip(rows.tolist(), read_samples(storage, index, rows), strict=True):
            try:
                decode(data, out)
            except DataError as error:
                raise DataError(
                    f"{storage.address}: {index.describe(row)}: {error}; pack again with --overwrite"
                ) from error
        return len(rows)

    pieces = np.array_split(np.arange(len(index)), -(-len(index) // 256))
    with ThreadPoolExecutor(workers, thread_name_prefix="verify") as threads:
        progress = tqdm(desc="verifying", total=len(index), unit=" images", disable=None)
        for count in threads.map(check, pieces):
            progress.update(count)
        progress.close()
    check_digests(storage, index)
    return len(index)


def check_digests(storage: Storage, index: Index) -> None:
    """DataError if a shard is not, to the byte, the one that was packed."""
    for name, digest in index.digests.items():
        if _digest(storage, name, index.shards[name]) != digest:
            raise DataError(
                f"{storage.url(name)}: its SHA-256 is not the one that pack wrote: its bytes changed;"
                " restore it from a copy, or pack again with --overwrite"
            )


def _digest(storage: Storage, name: str, size: int) -> str:
    """The SHA-256 of a shard, read piece by piece."""
    digest = hashlib.sha256()
    for start in range(0, size, _PIECE_BYTES):
        digest.update(storage.get(name, start, min(_PIECE_BYTES, size - start)))
    return digest.hexdigest()


def packed_already(storage: Storage, recipe: Recipe) -> Index | None:
    """The finished index of the same recipe; UsageError if there is one of another recipe.

    None if there is none, or if it is damaged or a shard is missing: packing again repairs that.
    """
    if INDEX_KEY not in storage.sizes(INDEX_KEY):
        return None
    try:
        index = read_index(storage)
    except DataError as error:
        print(f"packing again: {error}", file=sys.stderr)
        return None
    packed = index.about.recipe or {}
    for key, value in asdict(recipe).items():
        if packed.get(key) != value:
            raise UsageError(
                f"{storage.address}: already packed with {key} {packed.get(key)!r}, not {value!r};"
                " choose another destination, or --overwrite"
            )
    try:
        check_shards(storage, index)
    except DataError as error:
        print(f"packing again: {error}", file=sys.stderr)
        return None
    return index
