"""Labels from a file beside the images: StyleGAN's dataset.json, or imagefolder's metadata."""

import csv
import io
import json
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from service.data.listing import Classes, in_order
from service.data.tar import LARGEST_LABEL, whole_number
from service.errors import DataError, UsageError

DATASET = "dataset.json"
"""StyleGAN's convention: {"labels": [["00000/img00000000.png", 6], …]}, on top of the images."""
UNFINISHED = "UNFINISHED"
"""Lies in a folder of images that `service.sample` draws until it is whole."""
METADATA = ("metadata.csv", "metadata.jsonl")
"""The imagefolder convention: rows with the name of a file below the table's folder, and its label."""
NAME_FIELD, LABEL_FIELD = "file_name", "label"
LARGEST_FILE_BYTES = 1 << 30
"""No table and no image is larger; a few kilobytes of a zip can stand for far more."""

Label = int | str
Read = Callable[[str], bytes]


def classes_of_file(
    where: str, members: Sequence[str], tables: Sequence[str], read: Read, field: str | None
) -> Classes | None:
    """Classes by the labels in a file beside the images; None if no file holds any.

    `tables` are the files that may be one, `read` gives their bytes; `field` names the column or field
    that holds the labels, by default LABEL_FIELD. DataError if a file is damaged, or lacks an image.
    """
    if DATASET in tables:
        if field is not None:
            raise UsageError(f"--label {field}: the labels are in {where}/{DATASET}; leave it out")
        labels = _dataset(f"{where}/{DATASET}", read(DATASET))
        return None if labels is None else _classes(f"{where}/{DATASET}", labels, members)
    named = tables_read(tables)
    found: dict[str, Label] = {}
    for table in named:
        rows = _metadata(f"{where}/{table}", posixpath.dirname(table), read(table), field)
        for name, label in rows.items():
            if found.setdefault(name, label) != label:
                raise DataError(
                    f"{where}/{table}: {name} has the label {label!r}, but {found[name]!r} in another"
                    " table; correct one of them"
                )
    if not found:
        return None
    return _classes(f"{where}/{named[0]}", found, members)


def tables_read(tables: Sequence[str]) -> list[str]:
    """Those of the tables that are files of labels."""
    if DATASET in tables:
        return [DATASET]
    return [table for table in tables if posixpath.basename(table) in METADATA]


def unread(tables: Sequence[str], classes: Classes | None) -> Iterator[str]:
    """What to know of tables that may hold labels and were not read."""
    others = [table for table in tables if posixpath.basename(table) not in (DATASET, *METADATA)]
    lists = [table for table in others if not table.endswith(".json")]
    if lists:
        yield (
            f"{lists[0]} was not read{f' ({len(lists)} such files)' if lists[1:] else ''}; labels come"
            f" from {' or '.join(METADATA)}, with the columns {NAME_FIELD} and {LABEL_FIELD}"
        )
    metadata = [table for table in tables if posixpath.basename(table) in METADATA]
    if metadata and DATASET in tables:
        yield f"{metadata[0]} was not read, because {DATASET} is there"
    elif metadata and classes is None:
        yield f"{metadata[0]} has no {LABEL_FIELD!r}; if its labels have another name, give --label NAME"


def _classes(table: str, label_of: Mapping[str, Label], members: Sequence[str]) -> Classes:
    """Classes by the labels in the file at this address; DataError if an image has none there."""
    missing = [member for member in members if member not in label_of]
    if missing:
        raise DataError(
            f"{table}: has no label for {missing[0]} ({len(missing)} such images);"
            + (
                ' add them, or set "labels" to null to take the folders as classes'
                if table.endswith(DATASET)
                else " add them, or move the file away to take the folders as classes"
            )
        )
    labels = [label_of[member] for member in members]
    beyond = len(label_of) - len(set(members))
    notes = (f"{table} lists {beyond:,} images that are not there",) if beyond > 0 else ()
    numbers = [label for label in labels if isinstance(label, int)]
    if len(numbers) == len(labels):
        return Classes(numbers, [str(i) for i in range(max(numbers) + 1)], notes)
    names = in_order({str(label) for label in labels})
    number = {name: i for i, name in enumerate(names)}
    return Classes([number[str(label)] for label in labels], names, notes)


def _dataset(where: str, data: bytes) -> dict[str, Label] | None:
    """Label of each name in a dataset.json; None if it says that there are none."""
    try:
        pairs: Any = json.loads(data)["labels"]
        if pairs is None:
            return None
        labels: dict[str, Label] = {}
        for name, label in pairs:
            if labels.setdefault(str(name), label) != label:
                raise ValueError(f"{name} is there twice, with other labels")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{where}: cannot be read ({error!r}); write"
            ' {"labels": [["folder/image.png", 6], …]} or {"labels": null}'
        ) from error
    for name, label in labels.items():
        if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label <= LARGEST_LABEL:
            raise DataError(
                f"{where}: the label of {name} is {label!r}; number the classes from 0 up to"
                f" {LARGEST_LABEL}"
            )
    return labels


def _metadata(where: str, folder: str, data: bytes, field: str | None) -> dict[str, Label]:
    """Labels by path in one table; nothing if it has no such field and none was asked for."""
    rows = rows_of_csv if where.endswith(".csv") else _rows_of_jsonl
    labels: dict[str, Label] = {}
    wanted = field or LABEL_FIELD
    try:
        for number, row in rows(data.decode("utf-8-sig")):
            if field is None and wanted not in row:
                continue
            name, label = row.get(NAME_FIELD), row.get(wanted)
            if not isinstance(name, str) or not name:
                raise ValueError(f"line {number} has no {NAME_FIELD!r}")
            member = posixpath.normpath(posixpath.join(folder, name))
            value = _label(number, wanted, label)
            if labels.setdefault(member, value) != value:
                raise ValueError(f"line {number}: {name} has another label than in a line before")
    except (ValueError, RecursionError, csv.Error) as error:
        raise DataError(
            f"{where}: cannot be read ({error}); each row needs {NAME_FIELD!r} and {wanted!r}"
        ) from error
    return labels


def _label(number: int, field: str, value: object) -> Label:
    """A whole number or text; ValueError if it is neither."""
    if isinstance(value, str) and value.strip():
        whole = whole_number(value.strip())
        if whole is None:
            return value.strip()
        value = whole
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LARGEST_LABEL:
        raise ValueError(
            f"line {number}: {field!r} is {value!r}, neither text nor a number up to {LARGEST_LABEL}"
        )
    return value


def rows_of_csv(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number, and cells by the names in line 1, of each row; ValueError or csv.Error if damaged."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    names = next(reader, [])
    if len(set(names)) < len(names):
        raise ValueError("line 1 names a column twice")
    for cells in filter(None, reader):
        if len(cells) != len(names):
            raise ValueError(
                f"line {reader.line_num} has {len(cells)} cells, but line 1 has {len(names)}"
            )
        yield reader.line_num, dict(zip(names, cells, strict=True))


def _rows_of_jsonl(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is no object")
            yield number, row
