"""Pack images into shuffled WebDataset shards: `python -m service.pack SOURCE DESTINATION`."""

import argparse
import contextlib
import hashlib
import io
import json
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import webdataset
from PIL import Image, ImageColor
from tqdm import tqdm

from service.cli import check_bounds, run_command
from service.data.decode import decode
from service.data.index import (
    CLAIM_KEY,
    INDEX_KEY,
    PACKING,
    Index,
    check_shards,
    is_held_out,
    make_index,
    read_index,
    write_index,
)
from service.data.stream import read_samples
from service.errors import DataError, UsageError
from service.random import philox
from service.sources import Source, open_source
from service.storage import Storage, Writer, open_storage
from service.storage.lock import RunLock

T = TypeVar("T")

DESCRIPTION = """Pack images into shuffled WebDataset shards, with an index written last. The same
command again goes on after a kill: shards that are finished are not made anew."""
EPILOG = """sources:
  digits            scikit-learn's 1,797 handwritten digits, 8×8, embedded
  FOLDER            images; sub-folders are the classes, in the order of their names
  ARCHIVE.zip       the same in a zip archive
  IMAGES-idx3-ubyte an IDX file (also .gz) as of MNIST; its labels lie beside it as …labels-idx1…

A folder or archive may hold a dataset.json of labels as of StyleGAN's tools:
  {"labels": [["00000/img00000000.png", 6], …]}, or {"labels": null} to go by the folders

examples:
  python -m service.pack digits data/digits --resolution 32 --channels gray
  python -m service.pack ~/flowers s3://bucket/flowers --resolution 128 --format jpeg
  python -m service.pack cifar10.zip data/cifar10 --resolution 32 --verify
  python -m service.pack train-images-idx3-ubyte.gz data/fashion --resolution 32 --channels gray"""

MODES = {"gray": "L", "rgb": "RGB"}
CHANNELS = {"gray": 1, "rgb": 3}
SUFFIXES = {"jpeg": "jpg", "png": "png"}
TAR_BLOCK = 512
MAX_UNREADABLE_NAMED = 20
_AHEAD = 8


@dataclass(frozen=True)
class Recipe:
    """All that the bytes of the shards depend on, beside the source's own."""

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
                f" take {self.base * 2 ** max(0, multiple.bit_length() - 1)}, or another --base"
            )
        if not 0 <= self.held_out < 1:
            raise UsageError(f"--held-out {self.held_out}: a share, from 0 to below 1")
        try:
            ImageColor.getrgb(self.background)
        except ValueError as error:
            raise UsageError(
                f"--background {self.background}: no colour; give a name such as white, or #rrggbb"
            ) from error

    def digest(self) -> str:
        """Tells this recipe from others."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()


def prepare(image: Image.Image, resolution: int, mode: str, background: str = "white") -> Image.Image:
    """Cut to the centred square, resized with Lanczos, in `mode`; transparency on the background."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of type {image.mode}, whose range is not known")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    image = image.convert(mode)
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
    """Counts and names the images that could not be read, up to a limit that the user sets."""

    def __init__(self, limit: int):
        self.limit = limit
        self.names: list[str] = []

    def add(self, told: list[str]) -> None:
        """Take note of some; DataError past the limit."""
        self.names += told
        if len(self.names) > self.limit:
            raise DataError(
                f"{len(self.names)} unreadable images, --max-unreadable is {self.limit};"
                f" the last is {self.names[-1]}"
            )


@dataclass
class Part:
    """A finished shard: which recipe's, what it holds, and the object that it is."""

    recipe: str
    name: str
    size: int = 0
    etag: str = ""
    keys: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def pack(recipe: Recipe, source: Source, storage: Storage, max_unreadable: int, workers: int) -> Index:
    """Write the shards, then the index, and return it; the same recipe gives the same bytes.

    `workers` threads prepare images. What an earlier, unfinished call has finished stays.
    """
    _refuse_foreign(storage)
    with _alone(storage):
        storage.put(CLAIM_KEY, b"")
        storage.sweep("shard-")
        index = _pack(recipe, source, storage, max_unreadable, workers)
    storage.delete(storage.sizes(PACKING))
    storage.sweep(PACKING)
    return index


@contextlib.contextmanager
def _alone(storage: Storage) -> Iterator[None]:
    """LockError where another pack is at work on this destination."""
    lock = RunLock(open_storage(storage.url(PACKING.rstrip("/")), storage.retry_s))
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _refuse_foreign(storage: Storage) -> None:
    """UsageError where shards lie that no pack has written or begun to write."""
    entries = storage.entries()
    shards = [key for key in entries if key.endswith(".tar")]
    if shards and INDEX_KEY not in entries and CLAIM_KEY not in entries:
        raise UsageError(
            f"{storage.address}: holds {len(shards)} shards that pack did not write, such as"
            f" {shards[0]}; choose another destination, or --overwrite"
        )


def _pack(recipe: Recipe, source: Source, storage: Storage, max_unreadable: int, workers: int) -> Index:
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
            told = json.dumps(asdict(parts[name]))
            storage.put(f"{PACKING}{name}.json", told.encode())
    return _finish(recipe, source, storage, [parts[name] for name in chunk_of])


def _progressing(images: Iterable[T], progress: tqdm) -> Iterator[T]:
    for image in images:
        yield image
        progress.update()


def _finished(storage: Storage, recipe: Recipe) -> dict[str, Part]:
    """Shards of this recipe that are there as they were written, by name."""
    entries = storage.entries()
    found = {}
    for key in entries:
        if not key.startswith(f"{PACKING}shard-"):
            continue
        try:
            part = Part(**json.loads(storage.get(key)))
        except (ValueError, TypeError):
            continue  # of another version, or damaged: the shard is made anew
        entry = entries.get(part.name)
        same = entry is not None and (entry.size, entry.etag) == (part.size, part.etag)
        if part.recipe == recipe.digest() and (same or not part.keys):
            found[part.name] = part
    return found


def _images(
    recipe: Recipe, source: Source, numbers: Iterable[int], threads: ThreadPoolExecutor, ahead: int
) -> Iterator[bytes | Exception]:
    """The encoded images in turn, so many made ahead; for an unreadable one what is wrong with it."""

    def make(number: int) -> bytes | Exception:
        try:
            image = source.load(number)
            mode = MODES[recipe.channels]
            image = prepare(image, recipe.resolution, mode, recipe.background)
            return encode(image, recipe.encoding, recipe.quality)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return error

    made: deque[Future[bytes | Exception]] = deque()
    for number in numbers:
        made.append(threads.submit(make, number))
        if len(made) > ahead:
            yield made.popleft().result()
    while made:
        yield made.popleft().result()


class _Counted:
    """A writer that knows how much was written."""

    def __init__(self, writer: Writer):
        self._writer = writer
        self.count = 0

    def write(self, data: bytes) -> int:
        """Append bytes."""
        self._writer.write(data)
        self.count += len(data)
        return len(data)


def _write_shard(
    recipe: Recipe,
    source: Source,
    storage: Storage,
    name: str,
    images: Iterable[tuple[int, bytes | Exception]],
) -> Part:
    """Send a shard while it is made; nothing is there of it unless all of it comes through."""
    part = Part(recipe.digest(), name)
    suffix = SUFFIXES[recipe.encoding]
    with storage.writer(name) as writer:
        counted = _Counted(writer)
        with webdataset.TarWriter(counted, encoder=False, mtime=0) as tar:
            for number, image in images:
                if isinstance(image, Exception):
                    part.unreadable.append(f"{source.names[number]}: {image}")
                    tqdm.write(f"unreadable: {part.unreadable[-1]}", file=sys.stderr)
                    continue
                key, label = f"{number:08d}", int(source.labels[number])
                tar.write({"__key__": key, "cls": str(label).encode(), suffix: image})
                part.keys.append(key)
                part.labels.append(label)
                part.sizes.append(len(image))
                # The members of a sample are written by their names: the image is the last one.
                part.offsets.append(tar.tarstream.offset - -(-len(image) // TAR_BLOCK) * TAR_BLOCK)
    part.size, part.etag = counted.count, storage.entries(name)[name].etag
    return part


def _finish(recipe: Recipe, source: Source, storage: Storage, parts: list[Part]) -> Index:
    """Write the index of all shards, and clear away what was kept on the way to it."""
    full = [part for part in parts if part.keys]
    if not full:
        raise DataError(f"{recipe.source}: not one image could be read")
    names = {part.name for part in full}
    storage.delete(k for k in storage.sizes("shard-") if k.endswith(".tar") and k not in names)
    keys = [key for part in full for key in part.keys]
    about = asdict(recipe) | {
        "channels": CHANNELS[recipe.channels],
        "classes": source.classes,
        "unreadable": [told for part in parts for told in part.unreadable],
    }
    index = Index(
        {part.name: part.size for part in full},
        np.repeat(np.arange(len(full), dtype=np.int32), [len(part.keys) for part in full]),
        np.array([offset for part in full for offset in part.offsets], np.int64),
        np.array([size for part in full for size in part.sizes], np.int32),
        np.array([label for part in full for label in part.labels], np.int32),
        np.array([is_held_out(key, recipe.held_out) for key in keys], bool),
        pa.array(keys, pa.string()),
        {part.name: part.etag for part in full if part.etag},
        about,
    )
    write_index(storage, index)
    return index


def verify(storage: Storage, index: Index, workers: int) -> None:
    """Read everything back: tar headers against the index, and every image to its last pixel.

    DataError names what differs.
    """
    check_shards(storage, index)
    found = make_index(storage, storage.entries(), index.about["held_out"])
    if found.fingerprint() != index.fingerprint():
        raise DataError(
            f"{storage.address}: the index does not fit the shards; pack again with --overwrite"
        )
    resolution, channels = index.about["resolution"], index.about["channels"]

    def check(rows: np.ndarray) -> int:
        out = np.empty((resolution, resolution, channels), np.uint8)
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
    print(f"verified: {len(index)} images in {len(index.shards)} shards read back and decoded")


def _packed_already(storage: Storage, recipe: Recipe) -> Index | None:
    """The finished index of the same recipe; UsageError where another's is there.

    None where there is none, or it is damaged or a shard is missing: packing again mends that.
    """
    if INDEX_KEY not in storage.sizes(INDEX_KEY):
        return None
    try:
        index = read_index(storage)
    except DataError as error:
        print(f"packing again: {error}", file=sys.stderr)
        return None
    wanted = json.loads(json.dumps(asdict(recipe)))
    wanted["channels"] = CHANNELS[recipe.channels]
    for key, value in wanted.items():
        found = index.about.get(key)
        if found != value:
            raise UsageError(
                f"{storage.address}: packed already with {key} {found!r}, now {value!r};"
                " choose another destination, or --overwrite"
            )
    try:
        check_shards(storage, index)
    except DataError as error:
        print(f"packing again: {error}", file=sys.stderr)
        return None
    return index


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service.pack",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("source", help="digits, a folder or zip archive of images, or an IDX file")
    add("destination", help="folder or s3://bucket/prefix")
    add("--resolution", type=int, default=32, help="pixels of a side (default %(default)s)")
    add("--base", type=int, default=4, help="resolution is this times a power of two (%(default)s)")
    add("--channels", choices=[*MODES], default="rgb", help="colours (default %(default)s)")
    add("--background", default="white", help="behind transparency: a name or #rrggbb (%(default)s)")
    add("--format", choices=["png", "jpeg"], default="png", help="encoding (default %(default)s)")
    add("--quality", type=int, default=95, help="of JPEGs, 1 to 100 (default %(default)s)")
    add("--labels", help="IDX file of labels (default: beside the images)")
    add("--seed", type=int, default=0, help="of the shuffling (default %(default)s)")
    add("--shard-samples", type=int, default=1000, help="images a shard (default %(default)s)")
    add("--held-out", type=float, default=0.05, help="share never trained on (default %(default)s)")
    add("--max-unreadable", type=int, default=100, help="images that may fail (default %(default)s)")
    add("--retry-s", type=float, default=30, help="seconds to retry storage (default %(default)s)")
    workers = os.cpu_count() or 1
    add("--workers", type=int, default=workers, help="threads that prepare images (all cores)")
    add("--verify", action="store_true", help="read all shards back and decode every image")
    add("--overwrite", action="store_true", help="pack anew over what is there")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Parse, build, run, close."""
    options = _parser().parse_args(arguments)
    _check_bounds(options)
    is_path = options.source != "digits"
    source = open_source(options.source, options.labels)
    recipe = Recipe(
        source=str(Path(options.source).expanduser().absolute()) if is_path else "digits",
        source_digest=source.digest(),
        resolution=options.resolution,
        base=options.base,
        channels=options.channels,
        background=options.background,
        encoding=options.format,
        quality=options.quality,
        seed=options.seed,
        shard_samples=options.shard_samples,
        held_out=options.held_out,
    )
    storage = open_storage(options.destination, options.retry_s)
    if options.overwrite:
        storage.delete([INDEX_KEY, *storage.sizes(f"{PACKING}shard-")])
        storage.put(CLAIM_KEY, b"")
    index = _packed_already(storage, recipe)
    if index is not None:
        print(f"packed already: {storage.address}, nothing to do (--overwrite reads the images again)")
    else:
        index = pack(recipe, source, storage, options.max_unreadable, options.workers)
    _summarise(storage, index)
    if options.verify:
        verify(storage, index, options.workers)


def _check_bounds(options: argparse.Namespace) -> None:
    bounds = {
        "resolution": (1, 65536),
        "base": (1, 65536),
        "quality": (1, 100),
        "shard_samples": (1, 10**9),
        "max_unreadable": (0, 10**9),
        "workers": (1, 1024),
        "retry_s": (0, 10**6),
    }
    check_bounds(options, bounds)
    for name in ("source", "destination"):
        if not getattr(options, name).strip():
            raise UsageError(f"{name}: empty; see --help")


def _summarise(storage: Storage, index: Index) -> None:
    total = sum(index.shards.values())
    print(
        f"{storage.address}: {len(index)} images in {len(index.shards)} shards, {total / 1e6:.1f} MB,"
        f" {len(index.about['classes'])} classes, {int(index.held_out.sum())} held out,"
        f" fingerprint {index.fingerprint()[:16]}"
    )
    unreadable = index.about["unreadable"]
    if unreadable:
        print(f"left out, unreadable ({len(unreadable)}):")
        for name in unreadable[:MAX_UNREADABLE_NAMED]:
            print(f"  {name}")


if __name__ == "__main__":
    run_command(main)
