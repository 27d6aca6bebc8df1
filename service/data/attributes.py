"""Attributes of images from a CSV file: for each image, whether it has each of them."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from service.data.index import Index
from service.data.labels import rows_of_csv
from service.errors import DataError, StorageError, UsageError
from service.storage import is_s3, open_storage, split_address

KEY, ROW = "key", "row"
_REMEDY = f"the first column is {KEY!r} or {ROW!r}, the others hold 0 or 1"


@dataclass(frozen=True)
class AttributeTable:
    """`values` [m, k], 0 or 1, of the images in these `rows` [m] of the index, in ascending order."""

    names: tuple[str, ...]
    rows: NDArray[np.int64]
    values: NDArray[np.int64]

    def among(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Which of these rows of the index are in the table, and the values of those that are."""
        place = np.searchsorted(self.rows, rows).clip(max=len(self.rows) - 1)
        there = self.rows[place] == rows
        return there, self.values[place[there]]


def read_attributes(address: str, index: Index, retry_s: float = 0) -> AttributeTable:
    """The table in a CSV file at a path or an s3:// address.

    Line 1 names the columns. The first is `key`, the samples' keys, or `row`, their numbers in the
    index; each other column is an attribute. Images may be missing. UsageError if there is no file,
    DataError if it is damaged or names images that the index lacks.
    """
    text = _text(address, retry_s)
    try:
        lines = [row for _, row in rows_of_csv(text)]
        if not lines:
            raise ValueError("it has no rows")
        kind, *names = lines[0]
        if kind not in (KEY, ROW) or not names:
            raise ValueError(f"line 1 names the columns {', '.join(lines[0])}")
        values = np.array([[_value(row[name], name) for name in names] for row in lines])
        rows = _rows([row[kind] for row in lines], kind, index)
    except (ValueError, OverflowError, csv.Error) as error:
        raise DataError(f"{address}: cannot be read ({error}); {_REMEDY}") from error
    order = np.argsort(rows)
    return AttributeTable(tuple(names), rows[order], values[order])


def _text(address: str, retry_s: float) -> str:
    try:
        if is_s3(address):
            folder, name = split_address(address)
            return open_storage(folder, retry_s).get(name).decode("utf-8-sig")
        return Path(address).expanduser().read_text("utf-8-sig")
    except (OSError, StorageError, ValueError) as error:
        raise UsageError(
            f"{address}: cannot be read ({error}); give a CSV file of attributes"
        ) from error


def _value(cell: str, name: str) -> int:
    if cell.strip() not in ("0", "1"):
        raise ValueError(f"an image has {name} {cell!r}")
    return int(cell)


def _rows(named: list[str], kind: str, index: Index) -> NDArray[np.int64]:
    """The rows of the index that the first column names, in the order of the file."""
    if len(set(named)) < len(named):
        raise ValueError(f"a {kind} is there twice")
    if kind == ROW:
        rows = np.array([int(cell) for cell in named], np.int64)
        if rows.min() < 0 or rows.max() >= len(index):
            raise ValueError(f"rows {rows.min()} … {rows.max()}, but the index has {len(index)}")
        return rows
    lines = pc.index_in(index.keys, value_set=pa.array(named, pa.string())).fill_null(-1).to_numpy()
    found = np.flatnonzero(lines >= 0)
    if len(found) > len(np.unique(lines[found])):
        raise ValueError(f"shards share keys, such as {index.keys[int(found[0])]}; name {ROW}s instead")
    if len(found) < len(named):
        missing = named[int(np.setdiff1d(np.arange(len(named)), lines[found])[0])]
        raise ValueError(f"the index has no sample {missing!r}")
    rows = np.empty(len(named), np.int64)
    rows[lines[found]] = found
    return rows
