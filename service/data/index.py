"""Where every sample lies: shards, byte ranges, labels and the held-out mark, column by column."""

import functools
import hashlib
import io
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from service.data.tar import NO_LABEL, samples_of
from service.errors import DataError
from service.storage import Entry, MissingError, Storage, StorageError

INDEX_KEY = "index.parquet"
VERSION = 2
# Where `pack` keeps what it has done, until it writes the index.
PACKING = "packing/"
CLAIM_KEY = f"{PACKING}begun"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
REMEDY = f"delete {INDEX_KEY} to have it made anew, or pack again"
READERS = 16
HELD_OUT = 0.05
_HELD_OUT_STEPS = 1 << 32


class NoIndexError(DataError):
    """There is no index at this address."""


@dataclass(frozen=True)
class Index:
    """All samples of a data set, in the order of their shards and of their places in them.

    `shards` maps names to sizes in bytes. The columns have one entry a sample: `shard` (number in
    `shards`), `offset` and `size` (bytes of the image in the shard), `label` (NO_LABEL for none),
    `held_out`, `keys`. `etags` tells S3's objects from later ones of the same name. `about` tells how
    it was packed: source, resolution, channels, classes, …
    """

    shards: dict[str, int]
    shard: NDArray[np.int32]
    offset: NDArray[np.int64]
    size: NDArray[np.int32]
    label: NDArray[np.int32]
    held_out: NDArray[np.bool_]
    keys: pa.StringArray
    etags: dict[str, str] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

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
        """A digest of what the data is: shards, ranges, labels, keys and what is held out."""
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
    """Whether a key falls in the held-out share: by its hash, so the same wherever it lies."""
    digest = hashlib.blake2b(key.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") < share * _HELD_OUT_STEPS


def write_index(storage: Storage, index: Index) -> None:
    """Store the index, whole; a data set without one is not finished."""
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
    head = {
        "version": VERSION,
        "fingerprint": index.fingerprint(),
        "shards": index.shards,
        "etags": index.etags,
        "about": index.about,
    }
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"index": json.dumps(head)}), buffer)
    storage.put(INDEX_KEY, buffer.getvalue())


def read_index(storage: Storage) -> Index:
    """The index at this address; NoIndexError, with the remedy, where there is none."""
    try:
        data = storage.get(INDEX_KEY)
    except MissingError as error:
        raise NoIndexError(
            f"{storage.address}: no {INDEX_KEY}; pack first:"
            f" python -m service.pack SOURCE {storage.address}"
        ) from error
    try:
        table = pq.read_table(io.BytesIO(data), use_threads=False)
        head = json.loads(table.schema.metadata[b"index"])
        columns = {name: table[name].to_numpy() for name in table.column_names if name != "key"}
        if head["version"] != VERSION:
            raise DataError(
                f"{storage.url(INDEX_KEY)}: version {head['version']}, expected {VERSION}; {REMEDY}"
            )
        keys = table["key"].combine_chunks()
        index = Index(head["shards"], keys=keys, etags=head["etags"], about=head["about"], **columns)
        if index.fingerprint() != head["fingerprint"]:
            raise ValueError("it is not what was written")
    except (pa.ArrowException, OSError, LookupError, TypeError, ValueError) as error:
        raise DataError(f"{storage.url(INDEX_KEY)}: damaged ({error}); {REMEDY}") from error
    return index


def find_index(shards: Storage, place: Storage, held_out: float | None = None) -> Index:
    """The index at `place`, made of the shards' tar headers where there is none yet.

    `held_out` is the share of the samples, chosen by their keys, that is held out: of a new index
    HELD_OUT where it is None; DataError where a present one holds out another.
    """
    try:
        index = read_index(place)
    except NoIndexError:
        index = _index_anew(shards, place, HELD_OUT if held_out is None else held_out)
    made_with = index.about.get("held_out")
    if held_out is not None and made_with is not None and held_out != made_with:
        raise DataError(
            f"data.held_out: {held_out}, but {place.url(INDEX_KEY)} was made with {made_with};"
            f" leave the setting out, or {REMEDY}"
        )
    return index


def _index_anew(shards: Storage, place: Storage, held_out: float) -> Index:
    entries = shards.entries()
    if CLAIM_KEY in entries:
        raise DataError(f"{shards.address}: not packed to the end; give the same pack command again")
    if not any(key.endswith((".tar", *COMPRESSED)) for key in entries):
        raise NoIndexError(
            f"{shards.address}: no {INDEX_KEY} and no shards; correct the address, or pack first:"
            f" python -m service.pack SOURCE {shards.address}"
        )
    index = make_index(shards, entries, held_out)
    try:
        write_index(place, index)
    except StorageError as error:
        if place.address != shards.address:
            raise
        raise DataError(
            f"{error}; if the shards may only be read, give data.index_url, a folder or s3:// address"
            " that all workers share, for their index"
        ) from error
    return index


def make_index(shards: Storage, entries: dict[str, Entry], held_out: float) -> Index:
    """An index of all tar files among the entries, by one pass over their headers, many at a time."""
    packed = [key for key in entries if key.endswith(COMPRESSED)]
    if packed:
        raise DataError(
            f"{shards.url(packed[0])}: compressed, so that no part of it can be read alone; unpack"
            f" the {len(packed)} such shards with gunzip: their images are compressed already"
        )
    names = [key for key in entries if key.endswith(".tar")]
    with ThreadPoolExecutor(READERS, thread_name_prefix="headers") as threads:
        reads = threads.map(lambda name: samples_of(shards, name), names)
        found = list(tqdm(reads, "indexing", len(names), unit=" shards", disable=None))
    rows = [(number, sample) for number, (samples, _) in enumerate(found) for sample in samples]
    if not rows:
        raise DataError(f"{shards.address}: {len(names)} shards, but no image in them")
    return Index(
        {name: entries[name].size for name in names},
        np.array([number for number, _ in rows], np.int32),
        np.array([sample.offset for _, sample in rows], np.int64),
        np.array([sample.size for _, sample in rows], np.int32),
        np.array([sample.label for _, sample in rows], np.int32),
        np.array([is_held_out(sample.key, held_out) for _, sample in rows], bool),
        pa.array([sample.key for _, sample in rows], pa.string()),
        {name: entries[name].etag for name in names if entries[name].etag},
        {
            "source": "tar headers",
            "held_out": held_out,
            "without_image": sum(without for _, without in found),
        },
    )


def check_shards(storage: Storage, index: Index) -> None:
    """DataError unless just the shards are there that the index knows, unchanged."""
    present = {key: entry for key, entry in storage.entries().items() if key.endswith(".tar")}
    for name, size in index.shards.items():
        if name not in present:
            raise DataError(
                f"{storage.url(name)}: missing, but in the index; copy it again, or {REMEDY}"
            )
        found, known = present[name], index.etags.get(name, "")
        if found.size != size:
            raise DataError(
                f"{storage.url(name)}: {found.size} bytes, but {size} in the index: cut short or"
                f" changed; copy it again, or {REMEDY}"
            )
        if known and found.etag and found.etag != known:
            raise DataError(
                f"{storage.url(name)}: its ETag is {found.etag}, but {known} in the index: changed, or"
                f" copied in other parts; {REMEDY}"
            )
    unknown = sorted(present.keys() - index.shards.keys())
    if unknown:
        raise DataError(
            f"{storage.url(unknown[0])}: not in the index ({len(unknown)} such shards); move them away,"
            f" or {REMEDY}"
        )


def check_labels(index: Index, classes: int | None) -> None:
    """DataError naming the first sample whose label a model of so many classes has no place for.

    Samples without a label pass, to be counted as bad ones, unless that is all of them.
    """
    if classes is None:
        return
    if not np.any(index.label != NO_LABEL):
        raise DataError(
            f"{next(iter(index.shards))}: none of the samples has a label (a member .cls that holds a"
            " number); set model.classes to null to train without"
        )
    outside = np.flatnonzero(index.label >= classes)
    if len(outside):
        row = int(outside[0])
        raise DataError(
            f"{index.describe(row)}: label {index.label[row]} is outside 0 … {classes - 1}"
            f" ({len(outside)} such samples); set model.classes to"
            f" {int(index.label.max()) + 1} or correct the labels"
        )


def check_channels(index: Index, channels: int) -> None:
    """DataError where the images' channels are not the model's."""
    packed = index.about.get("channels")
    if packed not in (None, channels):
        raise DataError(
            f"the data has {packed} channels, the model {channels}; set model.channels to {packed}"
            " or pack with other --channels"
        )
