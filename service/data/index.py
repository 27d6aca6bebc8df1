"""Where every sample lies: shards, byte ranges, labels and the held-out mark, column by column."""

import hashlib
import io
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from service.errors import DataError
from service.storage import MissingError, Storage

INDEX_KEY = "index.parquet"
VERSION = 1
_HELD_OUT_STEPS = 1 << 32


@dataclass(frozen=True)
class Index:
    """All samples of a data set, in the order of their shards and of their places in them.

    `shards` maps names to sizes in bytes. The columns have one entry a sample: `shard` (number in
    `shards`), `offset` and `size` (bytes of the image in the shard), `label`, `held_out`, `keys`.
    `about` tells how it was packed: source, resolution, channels, classes, …
    """

    shards: dict[str, int]
    shard: NDArray[np.int32]
    offset: NDArray[np.int64]
    size: NDArray[np.int32]
    label: NDArray[np.int32]
    held_out: NDArray[np.bool_]
    keys: pa.StringArray
    about: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.shard)

    @property
    def names(self) -> list[str]:
        """Shard names, by their numbers."""
        return list(self.shards)

    def rows(self, held_out: bool) -> NDArray[np.int64]:
        """Numbers of the samples to train on, or of those held out."""
        return np.flatnonzero(self.held_out == held_out)

    def fingerprint(self) -> str:
        """A digest of what the data is: shards, ranges, labels, keys and what is held out."""
        digest = hashlib.sha256(json.dumps(self.shards).encode())
        for column in (self.shard, self.offset, self.size, self.label, self.held_out):
            digest.update(np.ascontiguousarray(column).tobytes())
        digest.update("\n".join(self.keys.to_pylist()).encode())
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
    head = {"version": VERSION, "shards": index.shards, "about": index.about}
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"index": json.dumps(head)}), buffer)
    storage.put(INDEX_KEY, buffer.getvalue())


def read_index(storage: Storage) -> Index:
    """The index of the shards at this address; DataError, with the remedy, where there is none."""
    try:
        data = storage.get(INDEX_KEY)
    except MissingError as error:
        shards = [key for key in storage.sizes() if key.endswith(".tar")]
        found = f"{len(shards)} shards but no {INDEX_KEY}" if shards else "no shards"
        raise DataError(
            f"{storage.address}: {found}; pack first: python -m service.pack SOURCE {storage.address}"
        ) from error
    try:
        table = pq.read_table(io.BytesIO(data), use_threads=False)
        head = json.loads(table.schema.metadata[b"index"])
        columns = {name: table[name].to_numpy() for name in table.column_names if name != "key"}
        keys = table["key"].combine_chunks()
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{storage.url(INDEX_KEY)}: damaged ({error}); pack again") from error
    if head["version"] != VERSION:
        raise DataError(
            f"{storage.url(INDEX_KEY)}: version {head['version']}, expected {VERSION}; pack again"
        )
    return Index(head["shards"], keys=keys, about=head["about"], **columns)


def check_shards(storage: Storage, index: Index) -> None:
    """DataError unless every shard is there with the size that the index knows."""
    present = storage.sizes()
    for name, size in index.shards.items():
        found = present.get(name)
        if found is None:
            raise DataError(f"{storage.url(name)}: missing, but in the index; pack again")
        if found != size:
            raise DataError(
                f"{storage.url(name)}: {found} bytes, but {size} in the index: cut short or changed;"
                " copy it again or pack again"
            )


def check_labels(index: Index, classes: int | None) -> None:
    """DataError naming the first sample whose label a model of so many classes has no place for."""
    if classes is None:
        return
    outside = np.flatnonzero((index.label < 0) | (index.label >= classes))
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
