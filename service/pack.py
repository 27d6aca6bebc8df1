"""Pack images into shuffled WebDataset shards: `python -m service.pack SOURCE DESTINATION`."""

import argparse
import gzip
import hashlib
import io
import json
import struct
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import webdataset
from PIL import Image, ImageOps
from tqdm import tqdm

from service import philox
from service.cli import check_bounds, run_command
from service.data.index import (
    INDEX_KEY,
    Index,
    check_shards,
    is_held_out,
    read_index,
    write_index,
)
from service.errors import DataError, UsageError
from service.storage import Storage, open_storage

DESCRIPTION = "Pack images into shuffled WebDataset shards, with an index written last."
EPILOG = """sources:
  digits            scikit-learn's 1,797 handwritten digits, 8×8, embedded
  FOLDER            images; sub-folders are the classes, in the order of their names
  IMAGES-idx3-ubyte an IDX file (also .gz) as of MNIST; its labels lie beside it as …labels-idx1…

examples:
  python -m service.pack digits data/digits --resolution 32 --channels gray
  python -m service.pack ~/flowers s3://bucket/flowers --resolution 128 --format jpeg
  python -m service.pack train-images-idx3-ubyte.gz data/fashion --resolution 32 --channels gray"""

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
MODES = {"gray": "L", "rgb": "RGB"}
CHANNELS = {"gray": 1, "rgb": 3}
MAX_UNREADABLE_NAMED = 20


@dataclass(frozen=True)
class Recipe:
    """All that the bytes of the shards depend on, beside the source's own."""

    source: str
    source_digest: str
    resolution: int
    base: int
    channels: str
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


@dataclass(frozen=True)
class Source:
    """Images by number: `names`, `labels` and `load` of each, and the names of the classes."""

    names: Sequence[str]
    labels: Sequence[int]
    classes: list[str]
    images: np.ndarray | None = None

    def load(self, number: int) -> Image.Image:
        """The image, opened; OSError where it cannot be."""
        if self.images is not None:
            return Image.fromarray(self.images[number])
        with Image.open(self.names[number]) as image:
            return ImageOps.exif_transpose(image)

    def digest(self) -> str:
        """Of names and labels: another list of images is another source."""
        listed = json.dumps([list(self.names), [int(label) for label in self.labels]])
        return hashlib.sha256(listed.encode()).hexdigest()[:16]


def open_source(source: str, labels: str | None) -> Source:
    """The source of this name, folder or IDX file; UsageError or DataError where it is none."""
    path = Path(source).expanduser()
    if labels and (source == "digits" or not path.is_file()):
        raise UsageError(f"--labels {labels}: only an IDX file of images has labels in a file")
    if source == "digits":
        return _digits()
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        return _idx(path, Path(labels) if labels else None)
    raise UsageError(f"{source}: neither `digits` nor a folder nor a file; see --help")


def _digits() -> Source:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.minimum(bunch.images * 16, 255).astype(np.uint8)  # 0 … 16 ink to 0 … 255
    names = [f"digit {i}" for i in range(len(images))]
    return Source(names, bunch.target.tolist(), [str(i) for i in range(10)], images)


def _folder(path: Path) -> Source:
    found = (p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    files = sorted(p for p in found if not any(n.startswith(".") for n in p.relative_to(path).parts))
    if not files:
        raise DataError(f"{path}: holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    tops = [f.relative_to(path).parts[0] if f.parent != path else "" for f in files]
    classes = sorted(set(tops))
    return Source([str(f) for f in files], [classes.index(top) for top in tops], classes)


def _idx(path: Path, labels_path: Path | None) -> Source:
    beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    images = _read_idx(path)
    labels = _read_idx(labels_path or beside)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or not images.size:
        raise DataError(
            f"{path}: shape {images.shape} and labels {labels.shape} are no pair of images and labels"
        )
    names = [f"image {i}" for i in range(len(images))]
    classes = [str(i) for i in range(int(labels.max()) + 1)]
    return Source(names, labels.tolist(), classes, images)


def _read_idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes, gzipped or not (LeCun et al., the MNIST page)."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        zeros, kind, dims = struct.unpack(">HBB", data[:4])
        if zeros != 0 or kind != 8 or dims < 1:
            raise ValueError("no IDX header of unsigned bytes")
        shape = struct.unpack(f">{dims}I", data[4 : 4 + 4 * dims])
        return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; give --labels FILE for an IDX pair") from error
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise DataError(f"{path}: not an IDX file: {error}") from error


def prepare(image: Image.Image, resolution: int, mode: str) -> Image.Image:
    """Cut to the centred square, resized with Lanczos, in `mode`; transparency on white."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of type {image.mode}, whose range is not known")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert(mode)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return image.resize((resolution, resolution), Image.Resampling.LANCZOS, box=box)


def _encode(image: Image.Image, encoding: str, quality: int) -> bytes:
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

    def add(self, name: str, error: Exception) -> None:
        """Take note of one; DataError past the limit."""
        self.names.append(f"{name}: {error}")
        tqdm.write(f"unreadable: {self.names[-1]}", file=sys.stderr)
        if len(self.names) > self.limit:
            raise DataError(
                f"{len(self.names)} unreadable images, --max-unreadable is {self.limit};"
                f" the last is {self.names[-1]}"
            )


def pack(recipe: Recipe, source: Source, storage: Storage, max_unreadable: int) -> Index:
    """Write the shards, then the index, and return it; the same recipe gives the same bytes."""
    order = philox.permutation(philox.key("pack", recipe.seed), len(source.names))
    unreadable = Unreadable(max_unreadable)
    samples = _samples(recipe, source, order, unreadable)
    shards: dict[str, int] = {}
    columns: list[tuple[int, int, int, int, bool, str]] = []
    for number, members in enumerate(_chunks(samples, recipe.shard_samples)):
        name = f"shard-{number:06d}.tar"
        data = _write_shard(members, recipe)
        storage.put(name, data)
        for (key, label, _), (offset, size) in zip(members, _ranges(data), strict=True):
            held_out = is_held_out(key, recipe.held_out)
            columns.append((number, offset, size, label, held_out, key))
        shards[name] = len(data)
    if not columns:
        raise DataError(f"{recipe.source}: not one image could be read")
    storage.delete(k for k in storage.sizes("shard-") if k.endswith(".tar") and k not in shards)
    about = asdict(recipe) | {
        "channels": CHANNELS[recipe.channels],
        "classes": source.classes,
        "unreadable": unreadable.names,
    }
    index = _to_index(shards, columns, about)
    write_index(storage, index)
    return index


def _samples(
    recipe: Recipe, source: Source, order: np.ndarray, unreadable: Unreadable
) -> Iterator[tuple[str, int, bytes]]:
    """Key, label and encoded image, in packing order."""
    for number in tqdm(order, desc="packing", unit=" images", disable=None):
        try:
            image = prepare(source.load(int(number)), recipe.resolution, MODES[recipe.channels])
            encoded = _encode(image, recipe.encoding, recipe.quality)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            unreadable.add(source.names[number], error)
            continue
        yield f"{number:08d}", int(source.labels[number]), encoded


def _chunks(samples: Iterator, size: int) -> Iterator[list]:
    chunk = []
    for sample in samples:
        chunk.append(sample)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _write_shard(members: list[tuple[str, int, bytes]], recipe: Recipe) -> bytes:
    extension = {"jpeg": "jpg", "png": "png"}[recipe.encoding]
    buffer = io.BytesIO()
    with webdataset.TarWriter(buffer, encoder=False, mtime=0) as writer:
        for key, label, image in members:
            writer.write({"__key__": key, extension: image, "cls": str(label).encode()})
    return buffer.getvalue()


def _ranges(shard: bytes) -> list[tuple[int, int]]:
    """Offset and size of each image in a shard."""
    with tarfile.open(fileobj=io.BytesIO(shard)) as tar:
        return [(m.offset_data, m.size) for m in tar if not m.name.endswith(".cls")]


def _to_index(shards: dict[str, int], columns: list[tuple], about: dict) -> Index:
    shard, offset, size, label, held_out, keys = zip(*columns, strict=True)
    return Index(
        shards,
        np.array(shard, np.int32),
        np.array(offset, np.int64),
        np.array(size, np.int32),
        np.array(label, np.int32),
        np.array(held_out, bool),
        pa.array(keys, pa.string()),
        about,
    )


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
    add("source", help="digits, a folder of images, or an IDX file of images")
    add("destination", help="folder or s3://bucket/prefix")
    add("--resolution", type=int, default=32, help="pixels of a side (default %(default)s)")
    add("--base", type=int, default=4, help="resolution is this times a power of two (%(default)s)")
    add("--channels", choices=[*MODES], default="rgb", help="colours (default %(default)s)")
    add("--format", choices=["png", "jpeg"], default="png", help="encoding (default %(default)s)")
    add("--quality", type=int, default=95, help="of JPEGs, 1 to 100 (default %(default)s)")
    add("--labels", help="IDX file of labels (default: beside the images)")
    add("--seed", type=int, default=0, help="of the shuffling (default %(default)s)")
    add("--shard-samples", type=int, default=1000, help="images a shard (default %(default)s)")
    add("--held-out", type=float, default=0.05, help="share never trained on (default %(default)s)")
    add("--max-unreadable", type=int, default=100, help="images that may fail (default %(default)s)")
    add("--retry-s", type=float, default=30, help="seconds to retry storage (default %(default)s)")
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
        encoding=options.format,
        quality=options.quality,
        seed=options.seed,
        shard_samples=options.shard_samples,
        held_out=options.held_out,
    )
    storage = open_storage(options.destination, options.retry_s)
    if options.overwrite:
        storage.delete([INDEX_KEY])
    index = _packed_already(storage, recipe)
    if index is not None:
        print(f"packed already: {storage.address}, nothing to do")
    else:
        index = pack(recipe, source, storage, options.max_unreadable)
    _summarise(storage, index)


def _check_bounds(options: argparse.Namespace) -> None:
    bounds = {
        "resolution": (1, 65536),
        "base": (1, 65536),
        "quality": (1, 100),
        "shard_samples": (1, 10**9),
        "max_unreadable": (0, 10**9),
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
