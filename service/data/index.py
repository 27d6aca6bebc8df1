"""Where every sample lies: shards, byte ranges, labels and held-out marks, column by column."""

import functools
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray
from pydantic import Field
from tqdm import tqdm

from service.data.tar import NO_LABEL, samples_of
from service.documents import Count, Digest, Document, Plain
from service.errors import DataError
from service.storage import Entry, MissingError, Storage, StorageError

INDEX_KEY = "index.parquet"
# Where `pack` keeps what it has done, until it writes the index.
PACKING = "packing/"
CLAIM_KEY = f"{PACKING}begun"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
REMEDY = f"delete {INDEX_KEY} to have it rebuilt, or pack again"
READERS = 16
MAX_CLASSES_NAMED = 100
HELD_OUT = 0.05
_HELD_OUT_STEPS = 1 << 32
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
    counts samples without an image; `recipe` is the packing recipe.
    """

    source: str = "tar headers"
    held_out: Annotated[float, Field(ge=0, lt=1)] | None = None
    resolution: Annotated[int, Field(ge=1, le=65536)] | None = None
    channels: Literal[1, 3] | None = None
    classes: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    without_image: Count = 0
    recipe: Plain | None = None


class IndexHead(Document):
    """What the index holds besides its columns, in the parquet file's metadata."""

    remedy: ClassVar[str] = REMEDY

    version: Literal[3] = 3
    fingerprint: Digest
    shards: dict[str, Count]
    etags: dict[str, str]
    about: About


class NoIndexError(DataError):
    """There is no index at this address."""


@dataclass(frozen=True)
class Index:
    """All samples of a data set, in the order of their shards and their places in them.

    `shards` maps names to sizes in bytes. The columns have one entry a sample: `shard` (number in
    `shards`), `offset` and `size` (bytes of the image in the shard), `label` (NO_LABEL for none),
    `held_out`, `keys`. `etags` distinguishes S3's objects from later ones of the same name.
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
        return f"{self.names[self.shard[row]]}: sample {self.keys[int(row)]}"


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
        fingerprint=index.fingerprint(), shards=index.shards, etags=index.etags, about=index.about
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
            name: table[name].to_numpy().astype(kind, casting="safe", copy=False)
            for name, kind in COLUMNS.items()
        }
        keys = table["key"].cast(pa.string()).combine_chunks()
        index = Index(head.shards, keys=keys, etags=head.etags, about=head.about, **columns)
        _check_columns(index)
        if index.fingerprint() != head.fingerprint:
            raise ValueError("its content does not match its fingerprint")
    except (pa.ArrowException, OSError, LookupError, TypeError, ValueError) as error:
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
    return pq.read_table(pa.BufferReader(content), use_threads=False)


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
    """ValueError if a sample lies outside its shard, or in no shard."""
    if len(index) and not 0 <= index.shard.min() <= index.shard.max() < len(index.shards):
        raise ValueError("a sample lies in an unknown shard")
    sizes = np.array([*index.shards.values()], np.int64)
    if np.any((index.offset < 0) | (index.size < 0) | (index.offset + index.size > sizes[index.shard])):
        raise ValueError("a sample lies outside its shard")


def find_index(
    shards: Storage,
    place: Storage,
    held_out: float | None = None,
    check: Callable[[Index], None] = lambda index: None,
) -> Index:
    """The index at `place`; if there is none yet, it is made from the shards' tar headers.

    `held_out` is the share of samples to hold out, chosen by their keys; for a new index, None means
    HELD_OUT. `check` raises if the index is not fit for use; then a new one is not written, so that
    mended data is read anew. DataError if an existing index holds out another share.
    """
    try:
        index = read_index(place)
    except NoIndexError:
        return _index_anew(shards, place, HELD_OUT if held_out is None else held_out, check)
    made_with = index.about.held_out
    if held_out is not None and made_with is not None and held_out != made_with:
        raise DataError(
            f"data.held_out: {held_out}, but {place.url(INDEX_KEY)} was made with {made_with};"
            f" leave the setting out, or {REMEDY}"
        )
    check(index)
    return index


def _index_anew(
    shards: Storage, place: Storage, held_out: float, check: Callable[[Index], None]
) -> Index:
    entries = shards.entries()
    if CLAIM_KEY in entries:
        raise DataError(f"{shards.address}: packing is unfinished; run the same pack command again")
    if not any(key.endswith((".tar", *COMPRESSED)) for key in entries):
        raise NoIndexError(
            f"{shards.address}: no {INDEX_KEY} and no shards; correct the address, or pack first:"
            f" python -m service.pack SOURCE {shards.address}"
        )
    index = make_index(shards, entries, held_out)
    check(index)
    try:
        write_index(place, index)
    except StorageError as error:
        if place.address != shards.address:
            raise
        raise DataError(
            f"{error}; if the shards are read-only, set data.index_url to a folder or s3:// address"
            " that all workers share"
        ) from error
    return index


def make_index(storage: Storage, entries: dict[str, Entry], held_out: float) -> Index:
    """An index of all tar files among the entries, from one pass over their headers, in parallel."""
    packed = [key for key in entries if key.endswith(COMPRESSED)]
    if packed:
        raise DataError(
            f"{storage.url(packed[0])}: compressed, and no part of it can be read alone; unpack"
            f" all {len(packed)} such shards with gunzip (their images are already compressed)"
        )
    names = [key for key in entries if key.endswith(".tar")]
    with ThreadPoolExecutor(READERS, thread_name_prefix="headers") as threads:
        reads = threads.map(lambda name: samples_of(storage, name), names)
        shards = list(tqdm(reads, "indexing", len(names), unit=" shards", disable=None))
    rows = [(number, sample) for number, (samples, _) in enumerate(shards) for sample in samples]
    if not rows:
        raise DataError(f"{storage.address}: no images in its shards ({len(names)})")
    return Index(
        {name: entries[name].size for name in names},
        np.array([number for number, _ in rows], np.int32),
        np.array([sample.offset for _, sample in rows], np.int64),
        np.array([sample.size for _, sample in rows], np.int32),
        np.array([sample.label for _, sample in rows], np.int32),
        np.array([is_held_out(sample.key, held_out) for _, sample in rows], bool),
        pa.array([sample.key for _, sample in rows], pa.string()),
        {name: entries[name].etag for name in names if entries[name].etag},
        About(held_out=held_out, without_image=sum(without for _, without in shards)),
    )


def check_shards(storage: Storage, index: Index) -> None:
    """DataError unless exactly the index's shards are there, unchanged."""
    present = {key: entry for key, entry in storage.entries().items() if key.endswith(".tar")}
    for name, size in index.shards.items():
        if name not in present:
            raise DataError(
                f"{storage.url(name)}: missing, but in the index; copy it again, or {REMEDY}"
            )
        entry, known = present[name], index.etags.get(name, "")
        if entry.size != size:
            raise DataError(
                f"{storage.url(name)}: {entry.size} bytes, but {size} in the index: it was cut short"
                f" or changed; copy it again, or {REMEDY}"
            )
        if known and entry.etag and entry.etag != known:
            raise DataError(
                f"{storage.url(name)}: its ETag is {entry.etag}, but {known} in the index: it was"
                f" changed, or copied in other parts; {REMEDY}"
            )
    unknown = sorted(present.keys() - index.shards.keys())
    if unknown:
        raise DataError(
            f"{storage.url(unknown[0])}: not in the index ({len(unknown)} such shards); move them away,"
            f" or {REMEDY}"
        )


def check_labels(index: Index, classes: int | None) -> None:
    """DataError unless a model's classes are those of the labels; a label outside names its sample.

    Samples without a label pass and count as bad ones later, unless no sample has a label.
    """
    if classes is None:
        return
    if not np.any(index.label != NO_LABEL):
        raise DataError(
            f"{next(iter(index.shards))}: no sample has a label (a .cls member that holds a number);"
            " set model.classes to null to train without labels"
        )
    outside = np.flatnonzero(index.label >= classes)
    known = len(class_counts(index.label, index.about.classes))
    if len(outside):
        row = int(outside[0])
        raise DataError(
            f"{index.describe(row)}: label {index.label[row]} is outside 0 … {classes - 1}"
            f" ({len(outside)} such samples); set model.classes to {known}, or correct the labels"
        )
    if classes > known:
        raise DataError(
            f"model.classes: {classes}, but the data's labels are 0 … {known - 1}; set it to {known},"
            " or correct the labels"
        )


def class_counts(labels: ArrayLike, names: Sequence[str]) -> list[tuple[str, int]]:
    """Name, "" if it has none, and number of samples of each class, in the order of the labels."""
    known = np.asarray(labels, np.int64)
    counts = np.bincount(known[known != NO_LABEL], minlength=len(names)).tolist()
    return list(zip([*names, *[""] * (len(counts) - len(names))], counts, strict=True))


def check_channels(index: Index, channels: int) -> None:
    """DataError if the images' channels differ from the model's."""
    packed = index.about.channels
    if packed not in (None, channels):
        raise DataError(
            f"the data has {packed} channels, the model {channels}; set model.channels to {packed}"
            " or pack again with other --channels"
        )
