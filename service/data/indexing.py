"""Makes the index of shards from their tar headers, and holds it against the shards that are there."""

import contextlib
import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Literal

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from service.data.index import (
    INDEX_KEY,
    REMEDY,
    TAR_HEADERS,
    About,
    Grown,
    Index,
    NoIndexError,
    is_held_out,
    read_index,
    write_index,
)
from service.data.listing import in_order, is_hidden
from service.data.tar import LARGEST_LABEL, NO_LABEL, PLAIN_CHOICE, Choice, Sample, Scan, scan
from service.documents import Document
from service.errors import DataError
from service.storage import Entry, MissingError, Storage, StorageError
from service.text import printable

# Where `pack` keeps what it has done, until it writes the index.
PACKING = "packing/"
CLAIM_KEY = f"{PACKING}begun"
COMPRESSED = re.compile(r".*\.(tar\.\w+|t(gz|bz2?|xz|lz4?|zst))", re.IGNORECASE | re.DOTALL)
READERS = 16
HELD_OUT = 0.05
MARKS_KEY = "index.marks.json"
NO_NUMBER = "labels that are no number, beside others that are"
NEW_CLASS = "labels of later shards that name no class of those before"
MOST_REASONS = 50
OTHER_REASONS = "members of other suffixes"


class MarksDocument(Document):
    """What the shards' files were like when they were last read: times and inodes, by name."""

    version: Literal[1] = 1
    marks: dict[str, str]


def find_index(
    shards: Storage,
    place: Storage,
    held_out: float | None = None,
    check: Callable[[Index], None] = lambda index: None,
    choice: Choice = PLAIN_CHOICE,
    grown: bool = False,
) -> Index:
    """The index at `place`, which fits the shards; made from their tar headers if there is none yet.

    `held_out` is the share of samples to hold out, chosen by their keys; for a new index, None means
    HELD_OUT. `check` raises if the index is not fit for use; then a new one is not written, so that
    mended data is read anew. With `grown`, shards that came later join an index that is there. DataError
    if the index was made with other settings, or of other shards.
    """
    entries = shards.entries()
    try:
        known = read_index(place)
    except NoIndexError:
        index = _index_anew(shards, entries, HELD_OUT if held_out is None else held_out, choice)
        check(index)
        _write(shards, place, index)
        write_marks(place, index, entries)
        return index
    _check_settings(place, known, held_out, choice)
    index = extend(shards, entries, known) if grown else known
    check_shards(shards, index, place, entries, just_read=index.shards.keys() - known.shards.keys())
    check(index)
    if index is not known:
        _write(shards, place, index)
    return index


def _check_settings(place: Storage, index: Index, held_out: float | None, choice: Choice) -> None:
    made = index.about
    wanted = {
        "held_out": (held_out, made.held_out),
        "image": (choice.image, made.choice.image),
        "label": (choice.label, made.choice.label),
    }
    for name, (now, before) in wanted.items():
        unknown = name == "held_out" and before is None
        if now is not None and now != before and not unknown:
            raise DataError(
                f"data.{name}: {now}, but {place.url(INDEX_KEY)} was made with"
                f" {'none' if before is None else before}; leave the setting out, or {REMEDY}"
            )


def _index_anew(shards: Storage, entries: dict[str, Entry], held_out: float, choice: Choice) -> Index:
    if CLAIM_KEY in entries:
        raise DataError(
            f"{shards.address}: packing is unfinished; run the same pack command again, or draw the"
            " images again into a new folder"
        )
    if not any(_is_shard(key) or COMPRESSED.fullmatch(key) for key in entries):
        raise NoIndexError(
            f"{shards.address}: no {INDEX_KEY} and no shards; correct the address, which names a folder"
            f" of .tar files, or pack first: python -m service.pack SOURCE {shards.address}"
        )
    return make_index(shards, entries, held_out, choice)


def _write(shards: Storage, place: Storage, index: Index) -> None:
    try:
        write_index(place, index)
    except StorageError as error:
        if place.address != shards.address:
            raise
        raise DataError(
            f"{error}; if the shards are read-only, set data.index_url to a folder or s3:// address"
            " that all workers share"
        ) from error


def make_index(
    storage: Storage, entries: dict[str, Entry], held_out: float, choice: Choice = PLAIN_CHOICE
) -> Index:
    """An index of all tar files among the entries, from one pass over their headers, in parallel."""
    _refuse_compressed(storage, entries)
    names = [key for key in entries if _is_shard(key)]
    scans = _scan(storage, entries, names, choice, "indexing")
    passed_over = sum((found.passed_over for found in scans), _beside(entries) + _dead(storage))
    raw = [sample.label for found in scans for sample in found.samples]
    labels, classes = _numbered(raw, passed_over)
    about = About(
        held_out=held_out,
        classes=classes,
        without_image=sum(found.without_image for found in scans),
        passed_over=_bounded(passed_over),
        choice=choice,
    )
    if not any(found.samples for found in scans):
        what = [f"no images in its shards ({len(names)})", *passed_over_in_words(about)]
        raise DataError(f"{storage.address}: {'; '.join(what)}")
    return _index(entries, names, scans, labels, about)


def extend(storage: Storage, entries: dict[str, Entry], index: Index) -> Index:
    """The index with the shards that came later, behind the others; itself if there are none."""
    _refuse_compressed(storage, entries)
    names = [key for key in entries if _is_shard(key) and key not in index.shards]
    if not names:
        return index
    about = index.about
    scans = _scan(storage, entries, names, about.choice, "indexing new shards")
    raw = [sample.label for found in scans for sample in found.samples]
    labels = _known_labels(about)(raw)
    passed_over = sum((found.passed_over for found in scans), Counter(about.passed_over))
    unknown = zip(raw, labels, strict=True)
    passed_over[NEW_CLASS] += sum(label == NO_LABEL != given for given, label in unknown)
    without = about.without_image + sum(found.without_image for found in scans)
    added = _index(entries, names, scans, labels, about)
    return Index(
        index.shards | added.shards,
        np.concatenate([index.shard, added.shard + len(index.shards)]).astype(np.int32),
        np.concatenate([index.offset, added.offset]),
        np.concatenate([index.size, added.size]),
        np.concatenate([index.label, added.label]),
        np.concatenate([index.held_out, added.held_out]),
        pa.concat_arrays([index.keys, added.keys]),
        index.etags | added.etags,
        # of the new images nothing is known that pack knew of the old ones
        dataclasses.replace(
            about,
            resolution=None,
            channels=None,
            recipe=None,
            without_image=without,
            passed_over=_bounded(passed_over),
        ),
        index.digests,
        (*index.grown, Grown(index.fingerprint(), len(index.shards))),
    )


def _refuse_compressed(storage: Storage, entries: dict[str, Entry]) -> None:
    packed = [key for key in entries if COMPRESSED.fullmatch(key) and not is_hidden(key)]
    if packed:
        raise DataError(
            f"{storage.url(packed[0])}: compressed, and no part of it can be read alone; unpack"
            f" all {len(packed)} such shards, as with gunzip (their images are already compressed)"
        )


def _is_shard(key: str) -> bool:
    return key.lower().endswith(".tar") and not is_hidden(key)


def _scan(
    storage: Storage, entries: dict[str, Entry], names: Sequence[str], choice: Choice, what: str
) -> list[Scan]:
    """The samples of these shards, read in parallel."""
    with ThreadPoolExecutor(READERS, thread_name_prefix="headers") as threads:
        reads = threads.map(lambda name: scan(storage, name, entries[name].size, choice), names)
        return list(tqdm(reads, what, len(names), unit=" shards", disable=None))


def _index(
    entries: dict[str, Entry],
    names: Sequence[str],
    scans: Sequence[Scan],
    labels: Sequence[int],
    about: About,
) -> Index:
    samples = [sample for found in scans for sample in found.samples]
    share = about.held_out or 0.0
    return Index(
        {name: entries[name].size for name in names},
        np.repeat(np.arange(len(scans), dtype=np.int32), [len(found.samples) for found in scans]),
        np.array([sample.offset for sample in samples], np.int64),
        np.array([sample.size for sample in samples], np.int32),
        np.array(labels, np.int32),
        np.array([is_held_out(sample.key, share) for sample in samples], bool),
        pa.array([sample.key for sample in samples], pa.string()),
        {name: entries[name].etag for name in names if entries[name].etag},
        about,
    )


def _numbered(
    labels: Sequence[int | str], passed_over: Counter[str]
) -> tuple[list[int], tuple[str, ...]]:
    """The labels as numbers, and the classes' names if all labels are text."""
    texts = {label for label in labels if isinstance(label, str)}
    numbers = any(isinstance(label, int) and label != NO_LABEL for label in labels)
    if not texts or numbers:
        passed_over[NO_NUMBER] += sum(isinstance(label, str) for label in labels)
        return _as_numbers(labels, {}), ()
    if len(texts) > LARGEST_LABEL:
        raise DataError(f"{len(texts)} different labels; give each class a name, not each image")
    names = in_order(texts)
    return _as_numbers(labels, {name: i for i, name in enumerate(names)}), tuple(names)


def _known_labels(about: About) -> Callable[[Sequence[int | str]], list[int]]:
    """What turns labels into numbers of the classes that are known; NO_LABEL for others."""
    number = {name: i for i, name in enumerate(about.classes)}
    # where labels are texts, a number is the name of none of them
    are_texts = bool(number) and about.source == TAR_HEADERS

    def as_known(labels: Sequence[int | str]) -> list[int]:
        if are_texts:
            labels = [label if label == NO_LABEL else str(label) for label in labels]
        return _as_numbers(labels, number)

    return as_known


def _as_numbers(labels: Sequence[int | str], number: dict[str, int]) -> list[int]:
    return [label if isinstance(label, int) else number.get(label, NO_LABEL) for label in labels]


def _beside(entries: dict[str, Entry]) -> Counter[str]:
    """What lies beside the shards and is not read, by suffix."""
    others = (key for key in entries if not _is_shard(key) and key not in (INDEX_KEY, MARKS_KEY))
    kinds = (
        "hidden" if is_hidden(key) else PurePosixPath(key).suffix or "no suffix"
        for key in others
        if not key.startswith(PACKING)
    )
    return Counter(f"files beside the shards, {kind}" for kind in kinds)


def _dead(storage: Storage) -> Counter[str]:
    """Links to nothing: each may stand for a shard whose place is not mounted."""
    return Counter("links to nothing beside the shards" for _ in storage.dead_links())


def _bounded(passed_over: Counter[str]) -> dict[str, int]:
    """The most frequent reasons, and the others together: suffixes may be as many as files."""
    counts = Counter({printable(reason): count for reason, count in passed_over.items() if count})
    kept = dict(counts.most_common(MOST_REASONS))
    rest = counts.total() - sum(kept.values())
    return kept | ({OTHER_REASONS: rest} if rest else {})


def passed_over_in_words(about: About) -> list[str]:
    """What is in the shards, or was in the source, and is not shown: a line for each reason."""
    lines = [
        f"{count:,} {'members of suffix ' if reason.startswith('.') else ''}{reason}"
        for reason, count in sorted(about.passed_over.items())
    ]
    if about.without_image:
        lines.append(f"{about.without_image:,} samples without an image")
    if about.unreadable:
        lines.append(f"{len(about.unreadable):,} unreadable images")
    return lines


def check_shards(
    storage: Storage,
    index: Index,
    place: Storage | None = None,
    entries: dict[str, Entry] | None = None,
    just_read: AbstractSet[str] = frozenset(),
) -> None:
    """DataError unless exactly the index's shards are there, unchanged.

    Files whose marks at `place`, where the index lies, are not those of today are looked at again: they
    were changed, or only copied. Those that were `just_read` need not be.
    """
    place = place or storage
    entries = storage.entries() if entries is None else entries
    present = {key: entry for key, entry in entries.items() if _is_shard(key)}
    for name, size in index.shards.items():
        if name not in present:
            raise DataError(
                f"{storage.url(name)}: missing, but in the index; copy it again, or {REMEDY}"
            )
        _check_entry(storage.url(name), present[name], Entry(size, index.etags.get(name, "")))
    unknown = sorted(present.keys() - index.shards.keys())
    if unknown:
        raise DataError(
            f"{storage.url(unknown[0])}: not in the index ({len(unknown)} such shards); move them away,"
            f" set data.grown to true to train on them as well, or {REMEDY}"
        )
    known = _read_marks(place) if any(entry.mark for entry in present.values()) else {}
    touched = [name for name in index.shards if present[name].mark != known.get(name, "")]
    if touched:
        _look_again(storage, index, present, [name for name in touched if name not in just_read])
        write_marks(place, index, present)


def write_marks(place: Storage, index: Index, entries: dict[str, Entry]) -> None:
    """Write down the marks of the index's shards, which have just been read; without them, nothing.

    Where nothing can be written, the next start looks at the shards again.
    """
    marks = {name: entries[name].mark for name in index.shards if entries[name].mark}
    if marks:
        with contextlib.suppress(StorageError):
            place.put(MARKS_KEY, MarksDocument(marks=marks).to_bytes())


def _read_marks(place: Storage) -> dict[str, str]:
    try:
        return MarksDocument.from_bytes(place.get(MARKS_KEY), place.url(MARKS_KEY)).marks
    except (MissingError, DataError):
        return {}


def _check_entry(where: str, entry: Entry, known: Entry) -> None:
    """DataError if a shard has another size or ETag than in the index."""
    if entry.size != known.size:
        raise DataError(
            f"{where}: {entry.size} bytes, but {known.size} in the index: it was cut short"
            f" or changed; copy it again, or {REMEDY}"
        )
    if known.etag and entry.etag and entry.etag != known.etag:
        raise DataError(
            f"{where}: its ETag is {entry.etag}, but {known.etag} in the index: it was"
            f" changed, or copied in other parts; {REMEDY}"
        )


def _look_again(storage: Storage, index: Index, entries: dict[str, Entry], names: Sequence[str]) -> None:
    """DataError if one of these shards holds other samples or labels than the index says."""
    number = {name: i for i, name in enumerate(index.names)}
    scans = _scan(storage, entries, names, index.about.choice, "looking again")
    as_known = _known_labels(index.about)
    ends = np.searchsorted(index.shard, np.arange(len(index.shards) + 1))
    for name, found in zip(names, scans, strict=True):
        rows = slice(*ends[number[name] : number[name] + 2].tolist())
        labels = as_known([sample.label for sample in found.samples])
        if not _are(found.samples, labels, index, rows):
            raise DataError(
                f"{storage.url(name)}: holds other samples or labels than in the index: it was changed;"
                f" restore it, or {REMEDY}"
            )


def _are(samples: Sequence[Sample], labels: Sequence[int], index: Index, rows: slice) -> bool:
    """Whether these are the samples in those rows of the index."""
    return (
        [sample.offset for sample in samples] == index.offset[rows].tolist()
        and [sample.size for sample in samples] == index.size[rows].tolist()
        and list(labels) == index.label[rows].tolist()
        and [sample.key for sample in samples] == index.keys[rows].to_pylist()
    )
