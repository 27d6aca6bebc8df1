"""Pack images into shuffled WebDataset shards: `python -m service.pack SOURCE DESTINATION`."""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from service.address import Address
from service.cli import Count, Options, Positional, Seed, parse, run_command
from service.data.index import INDEX_KEY, MAX_CLASSES_NAMED, Index, class_counts
from service.data.indexing import CLAIM_KEY, PACKING
from service.data.packing import Recipe, check_readable, pack, packed_already, verify
from service.data.sources import EMBEDDED, STACKED_DIGITS, ImageSource, counted, open_source
from service.errors import UsageError
from service.storage import Storage, is_s3, open_storage

DESCRIPTION = """Pack images into shuffled WebDataset shards, with an index written last. After a
kill, the same command continues and keeps the finished shards."""
EPILOG = """sources:
  digits            scikit-learn's 1,797 handwritten digits, 8×8, embedded
  stacked-digits    50,000 images whose red, green and blue are three of these digits: 1,000 classes
  FOLDER            images; sub-folders are the classes, in the order of their names or numbers
  ARCHIVE.zip       the same in a zip archive
  IMAGES-idx3-ubyte an IDX file as in MNIST, also .gz; its labels lie beside it as …labels-idx1…

A folder or archive may hold labels in a dataset.json, as StyleGAN's tools write it:
  {"labels": [["00000/img00000000.png", 6], …]}, or {"labels": null} to take the folders as classes
or in a metadata.csv or metadata.jsonl, whose rows hold file_name and label, a number or a name

examples:
  python -m service.pack digits data/digits --resolution 32 --channels gray
  python -m service.pack ~/flowers s3://bucket/flowers --resolution 128 --format jpeg
  python -m service.pack ~/faces data/faces --resolution 512 --format png
  python -m service.pack cifar10.zip data/cifar10 --resolution 32 --verify
  python -m service.pack train-images-idx3-ubyte.gz data/fashion --resolution 32 --channels gray"""

MAX_UNREADABLE_NAMED = 20
JPEG_PIXELS = 256
"""From here on, a core decodes too few PNGs a second to feed a GPU."""

Pixels = Annotated[int, Field(ge=1, le=65536)]


class PackOptions(Options):
    """What to pack, where to, and how."""

    source: Positional[Address]
    """digits, stacked-digits, a folder or zip archive of images, or an IDX file"""
    destination: Positional[Address]
    """folder or s3://bucket/prefix"""
    resolution: Pixels = 32
    """pixels per side"""
    base: Pixels = 4
    """the resolution must be this times a power of two"""
    channels: Literal["gray", "rgb"] = "rgb"
    """colours of the packed images"""
    background: str = "white"
    """colour behind transparent pixels: a name or #rrggbb"""
    format: Literal["auto", "png", "jpeg"] = "auto"
    """encoding of the packed images; auto: png, from 256 px up jpeg, which is read many times as fast"""
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    """quality of JPEGs"""
    labels: str | None = None
    """IDX file of labels (default: beside the images)"""
    label: str | None = None
    """column of metadata.csv, or field of metadata.jsonl, that holds the labels (default: label)"""
    seed: Seed = 0
    """seed of the shuffling"""
    shard_samples: Count = 1000
    """images per shard"""
    held_out: float = 0.05
    """share never trained on, from 0 to below 1"""
    max_unreadable: Annotated[int, Field(ge=0, le=10**9)] = 100
    """how many images may be unreadable before packing stops"""
    retry_s: Annotated[float, Field(ge=0, le=10**6)] = 30
    """how many seconds to retry storage"""
    workers: Annotated[int, Field(ge=1, le=1024)] = os.cpu_count() or 1
    """threads that prepare images (default: one per core)"""
    verify: bool = False
    """read all shards back and decode every image"""
    overwrite: bool = False
    """pack again, over what is there"""


def main(arguments: Sequence[str]) -> None:
    """Parse, build, run, close."""
    options = parse(PackOptions, arguments, "service.pack", DESCRIPTION, EPILOG)
    recipe = _recipe(options)
    storage = open_storage(options.destination, options.retry_s)
    _check_destination(options, storage)
    print(f"looking for images: {options.source}", file=sys.stderr, flush=True)
    source = open_source(options.source, options.labels, options.label)
    _tell(source)
    if options.format == "auto" and recipe.encoding == "jpeg":
        print(
            f"note: packed as JPEG, quality {options.quality}: at {options.resolution} px a core decodes"
            " about five times as many as PNGs; --format png keeps every pixel as it is"
        )
    recipe = replace(recipe, source_digest=source.digest())
    if options.overwrite:
        check_readable(source, recipe.source)  # before anything that is there is lost
        storage.delete([INDEX_KEY, *storage.sizes(f"{PACKING}shard-")])
        storage.put(CLAIM_KEY, b"")
    index = packed_already(storage, recipe)
    if index is not None:
        print(f"packed already: {storage.address}, nothing to do (--overwrite reads the images again)")
    else:
        index = pack(recipe, source, storage, options.max_unreadable, options.workers)
    _summarise(storage, index)
    if options.verify:
        count = verify(storage, recipe, index, options.workers)
        print(f"verified: {count} images in {len(index.shards)} shards read back and decoded")


def _check_destination(options: PackOptions, storage: Storage) -> None:
    """UsageError if the destination is a file, or lies in the source, whose images it would join."""
    if is_s3(storage.address):
        return
    place, source = Path(storage.address), Path(options.source).expanduser()
    if place.exists() and not place.is_dir():
        raise UsageError(f"{options.destination}: a file; name a folder or s3://bucket/prefix")
    if source.is_dir() and place.resolve().is_relative_to(source.resolve()):
        raise UsageError(
            f"{options.destination}: lies in the source {options.source}; choose a folder outside of it"
        )


def _recipe(options: PackOptions) -> Recipe:
    """The recipe without the source's digest; UsageError if the options do not go together."""
    is_path = options.source not in EMBEDDED
    if options.source == STACKED_DIGITS and options.channels != "rgb":
        raise UsageError(f"--channels {options.channels}: each channel shows a digit; take rgb")
    return Recipe(
        source=str(Path(options.source).expanduser().absolute()) if is_path else options.source,
        source_digest="",
        resolution=options.resolution,
        base=options.base,
        channels=options.channels,
        background=options.background,
        encoding=_encoding(options),
        quality=options.quality,
        seed=options.seed,
        shard_samples=options.shard_samples,
        held_out=options.held_out,
    )


def _encoding(options: PackOptions) -> Literal["png", "jpeg"]:
    """The encoding that is asked for, or else the one that a training reads fast enough."""
    if options.format != "auto":
        return options.format
    return "jpeg" if options.resolution >= JPEG_PIXELS else "png"


def _tell(source: ImageSource) -> None:
    """Say what the source's classes are and what is left out of it."""
    counts = class_counts(source.labels, source.classes)
    print(f"{len(source.names)} images in {len(counts)} classes (label, name, images):")
    for label, (name, count) in enumerate(counts[:MAX_CLASSES_NAMED]):
        print(f"  {label} {name or '(no folder)'} {count}")
    if len(counts) > MAX_CLASSES_NAMED:
        print(f"  … and {len(counts) - MAX_CLASSES_NAMED} more")
    for note in source.notes:
        print(f"note: {note}")
    if counted(source.left_out):
        print(f"left out: {counted(source.left_out)}")


def _summarise(storage: Storage, index: Index) -> None:
    total = sum(index.shards.values())
    print(
        f"{storage.address}: {len(index)} images in {len(index.shards)} shards, {total / 1e6:.1f} MB,"
        f" {len(index.about.classes)} classes, {int(index.held_out.sum())} held out,"
        f" fingerprint {index.fingerprint()[:16]}"
    )
    unreadable = index.about.unreadable
    if unreadable:
        print(f"unreadable and left out ({len(unreadable)}):")
        for name in unreadable[:MAX_UNREADABLE_NAMED]:
            print(f"  {name}")


if __name__ == "__main__":
    run_command(main)
