"""Where every sample lies: shards, byte ranges, labels and held-out marks, column by column."""

import dataclasses
import functools
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from service.data.tar import LARGEST_LABEL, NO_LABEL, PLAIN_CHOICE, Choice
from service.documents import Count, Digest, Document, Plain
from service.errors import DataError
from service.storage import MissingError, Storage
from service.text import printable

INDEX_KEY = "index.parquet"
TAR_HEADERS = "tar headers"
"""The source of an index that no pack wrote."""
REMEDY = (
    f"pack again, or delete {INDEX_KEY} to have it made from the shards, which loses what only pack knew"
    " (the classes' names, the held-out share)"
)
_HELD_OUT_STEPS = 1 << 32
MAX_CLASSES_NAMED = 100
BOUNDED_CODECS = {"SNAPPY", "UNCOMPRESSED"}
MOST_TIMES_AS_LARGE = 256
COLUMNS: dict[str, Any] = {
    "shard": np.int32,
    "offset": np.int64,
    "size": np.int32,
    "label": np.int32,
    "held_out": np.bool_,
}


@dataclass(frozen=True)
class About:
    """How a data set was made; None or empty if that is unknown.

    All images have this `resolution` (pixels a side) and these `channels`; `classes` are names by
    label; `held_out` is the share; `unreadable` are images that packing left out; `without_image`
    counts samples without an image, `passed_over` what else was not taken, by reason; `choice` says
    what was taken of each sample; `recipe` is the packing recipe.
    """

    source: str = TAR_HEADERS
    held_out: Annotated[float, Field(ge=0, lt=1)] | None = None
    resolution: Annotated[int, Field(ge=1, le=65536)] | None = None
    channels: Literal[1, 3] | None = None
    classes: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    without_image: Count = 0
    passed_over: dict[str, Count] = field(default_factory=dict)
    choice: Choice = PLAIN_CHOICE
    recipe: Plain | None = None


@dataclass(frozen=True)
class Grown:
    """What a data set was before it grew: its fingerprint, and how many shards it had."""

    fingerprint: Digest
    shards: Count


class IndexHead(Document):
    """What the index holds besides its columns, in the parquet file's metadata."""

    remedy: ClassVar[str] = REMEDY

    version: Literal[3] = 3
    fingerprint: Digest
    shards: dict[str, Count]
    etags: dict[str, str]
    about: About
    digests: dict[str, Digest] = Field(default_factory=dict)
    grown: tuple[Grown, ...] = ()


class NoIndexError(DataError):
    """There is no index at this address."""


@dataclass(frozen=True)
class Index:
    """All samples of a data set, in the order of their shards and their places in them.

    `shards` maps names to sizes in bytes. The columns have one entry a sample: `shard` (number in
    `shards`), `offset` and `size` (bytes of the image in the shard), `label` (NO_LABEL for none),
    `held_out`, `keys`. `etags` distinguishes S3's objects from later ones of the same name; `digests`
    are the SHA-256 of shards that `pack` wrote. `grown` is what the data was before, oldest first.
    """

    shards: dict[str, int]
    shard: NDArray[np.int32]
    offset: NDArray[np.int64]
    size: NDArray[np.int32]
    label: NDArray[np.int32]
    held_out: NDArray[np.bool_]
    keys: pa.StringArray
    etags: dict[str, str] = field(default_factory=dict)
    about: About = field(default_factory=About)
    digests: dict[str, str] = field(default_factory=dict)
    grown: tuple[Grown, ...] = ()

    def __len__(self) -> int:
        return len(self.shard)

    @functools.cached_property
    def names(self) -> list[str]:
        """Shard names, by their numbers."""
        return list(self.shards)

    def rows(self, held_out: bool) -> NDArray[np.int64]:
        """Numbers of the samples to train on, or of those held out."""
        return np.flatnonzero(self.held_out == held_out)

    def fingerprint(self) -> str:
        """A digest of the data: shards, ranges, labels, keys and held-out marks."""
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(json.dumps(self.shards).encode())
        for column in (self.shard, self.offset, self.size, self.label, self.held_out):
            digest.update(np.ascontiguousarray(column).tobytes())
        _, offsets, text = self.keys.buffers()
        ends = np.frombuffer(offsets, np.int32)[self.keys.offset :][: len(self) + 1]
        digest.update((ends - ends[0]).tobytes())
        digest.update(memoryview(text)[ends[0] : ends[-1]] if text else b"")
        return digest.hexdigest()

    def describe(self, row: int) -> str:
        """Shard and key of a sample, for messages."""
        return printable(f"{self.names[self.shard[row]]}: sample {self.keys[int(row)]}")


def is_held_out(key: str, share: float) -> bool:
    """Whether a key belongs to the held-out share; its hash decides, so the answer never changes."""
    digest = hashlib.blake2b(key.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") < share * _HELD_OUT_STEPS


def write_index(storage: Storage, index: Index) -> None:
    """Store the index; a data set without one is not finished."""
    table = pa.table(
        {
            "shard": index.shard,
            "offset": index.offset,
            "size": index.size,
            "label": index.label,
            "held_out": index.held_out,
            "key": index.keys,
        }
    )
    head = IndexHead(
        fingerprint=index.fingerprint(),
        shards=index.shards,
        etags=index.etags,
        about=index.about,
        digests=index.digests,
        grown=index.grown,
    )
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"index": head.to_bytes()}), buffer)
    storage.put(INDEX_KEY, buffer.getvalue())


def read_index(storage: Storage) -> Index:
    """The index at this address; NoIndexError, with the remedy, if there is none."""
    try:
        data = storage.get(INDEX_KEY)
    except MissingError as error:
        raise NoIndexError(
            f"{storage.address}: no {INDEX_KEY}; pack first:"
            f" python -m service.pack SOURCE {storage.address}"
        ) from error
    address = storage.url(INDEX_KEY)
    try:
        table = _read_table(data)
        head = IndexHead.from_bytes((table.schema.metadata or {}).get(b"index", b""), address)
        columns = {
            name: _in_numpy(table[name]).astype(kind, casting="safe", copy=False)
            for name, kind in COLUMNS.items()
        }
        keys = table["key"].cast(pa.string()).combine_chunks()
        index = Index(
            head.shards,
            keys=keys,
            etags=head.etags,
            about=dataclasses.replace(head.about, classes=tuple(map(printable, head.about.classes))),
            digests=head.digests,
            grown=head.grown,
            **columns,
        )
        _check_columns(index)
        if index.fingerprint() != head.fingerprint:
            raise ValueError("its content does not match its fingerprint")
    except (pa.ArrowException, OSError, LookupError, TypeError, ValueError, BufferError) as error:
        raise DataError(f"{address}: damaged ({error}); {REMEDY}") from error
    return index


def _read_table(data: bytes) -> pa.Table:
    """The table in a parquet file; ValueError if it would take far more memory than the file.

    A few kilobytes of a stranger's can stand for gigabytes: in a codec that shrinks without bound, in
    rows that say the same, or in long keys from a dictionary. In an index a sample takes a byte or more,
    since no two have one offset in a shard.
    """
    content = _in_arrow(data)
    file = pq.ParquetFile(pa.BufferReader(content), read_dictionary=["key"])
    groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    codecs = {group.column(i).compression for group in groups for i in range(group.num_columns)}
    if not codecs <= BOUNDED_CODECS:
        raise ValueError(f"compressed by {', '.join(sorted(codecs - BOUNDED_CODECS))}")
    rows = sum(group.num_rows for group in groups)
    if rows > len(data):
        raise ValueError(f"{rows} samples in {len(data)} bytes")
    size = sum(group.num_rows * _longest(file, i) for i, group in enumerate(groups))
    if size > MOST_TIMES_AS_LARGE * len(data):
        raise ValueError(
            f"its keys may take {size} bytes, {size // len(data)} times as many as the file"
        )
    # pq.read_table would import pandas
    return pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False)


def _in_numpy(column: pa.ChunkedArray) -> NDArray[Any]:
    """The numbers of a column without nulls.

    Arrow's own conversion imports pandas, which would take every worker a third of a second.
    """
    array = column.combine_chunks()
    if pa.types.is_boolean(array.type):  # they are bits, which DLPack does not know
        return np.from_dlpack(array.cast(pa.uint8())).astype(np.bool_)
    return np.from_dlpack(array)


def _longest(file: pq.ParquetFile, group: int) -> int:
    """Bytes of the longest key in a row group's dictionary, which the first row brings along."""
    for batch in file.iter_batches(1, [group], columns=["key"], use_threads=False):
        keys = batch.column("key")
        if not isinstance(keys, pa.DictionaryArray):
            raise TypeError(f"keys of type {keys.type}")
        return pc.max(pc.binary_length(keys.dictionary)).as_py() or 0
    return 0


def _in_arrow(data: bytes) -> pa.Buffer:
    """The bytes in Arrow's own memory.

    A thread of Arrow's releases the file late. If it is a Python file and Python exits meanwhile, the
    process aborts.
    """
    stream = pa.BufferOutputStream()
    stream.write(data)
    return stream.getvalue()


def _check_columns(index: Index) -> None:
    """ValueError if a sample lies outside its shard, or in none, or a shard outside the data."""
    for name in index.shards:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ValueError(f"the name {printable(name)!r} leads out of the data")
    if len(index) and not 0 <= index.shard.min() <= index.shard.max() < len(index.shards):
        raise ValueError("a sample lies in an unknown shard")
    sizes = np.array([*index.shards.values()], np.int64)
    if np.any((index.offset < 0) | (index.size < 0) | (index.offset + index.size > sizes[index.shard])):
        raise ValueError("a sample lies outside its shard")
    if len(index) and not NO_LABEL <= index.label.min() <= index.label.max() <= LARGEST_LABEL:
        raise ValueError(f"a label is none of {NO_LABEL} … {LARGEST_LABEL}")


def class_counts(labels: ArrayLike, names: Sequence[str]) -> list[tuple[str, int]]:
    """Name, "" if it has none, and number of samples of each class, in the order of the labels."""
    known = np.asarray(labels, np.int64)
    counts = np.bincount(known[known != NO_LABEL], minlength=len(names)).tolist()
    return list(zip([*names, *[""] * (len(counts) - len(names))], counts, strict=True))
