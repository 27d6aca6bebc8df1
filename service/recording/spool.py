"""Records under way: kept in the run directory until each is delivered once.

A segment is stored, then delivered, then the mark is stored, and then the segment is deleted. A crash
between any two steps loses nothing. A resumed run records some clocks again; what the mark covers is
dropped.
"""

import hashlib
import logging
import re
import threading
import uuid
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal
from urllib.parse import quote

from service.documents import Clock, Document
from service.errors import DataError
from service.recording.record import Record, Refusal
from service.storage import MissingError, Storage

log = logging.getLogger(__name__)

FOLDER, REFUSED_FOLDER = "spool", "refused"
MARK_KEY = f"{FOLDER}/mark.json"
_SEGMENT = re.compile(rf"{FOLDER}/\d+-\w+\.records\.json")
SEGMENTS_AT_ONCE = 100


class Segment(Document):
    """Records that were stored together."""

    remedy: ClassVar[str] = "it is left where it is, and its records are missing from MLflow"

    version: Literal[2] = 2
    records: tuple[Record, ...]


class Mark(Document):
    """The highest clock that each series of records was delivered up to."""

    version: Literal[2] = 2
    clocks: dict[str, Clock]


class Spool:
    """Segments of records in a run's storage, oldest first."""

    def __init__(self, storage: Storage):
        self.storage = storage
        self._lock = threading.Lock()  # one thread may add while another drains
        self._mark = self._read_mark()
        self._begun: set[str] = set()
        self._segments = [key for key in storage.sizes(f"{FOLDER}/") if _SEGMENT.fullmatch(key)]
        numbers = [int(key.split("/")[1].split("-")[0]) for key in self._segments]
        self._next = 1 + max(numbers, default=0)
        for key in self._segments:
            self._pass(self._read(key) or ())

    @property
    def depth(self) -> int:
        """How many segments wait for delivery."""
        return len(self._segments)

    def add(self, records: Sequence[Record]) -> None:
        """Store the records beyond the mark; after a StorageError everything is as before."""
        fresh = [r for r in records if r.clock > self._mark.get(_series(r), -1)]
        if fresh:
            key = f"{FOLDER}/{self._next:08d}-{uuid.uuid4().hex[:8]}.records.json"
            self.storage.put(key, Segment(records=tuple(fresh)).to_bytes())
            with self._lock:
                self._next += 1
                self._segments.append(key)
                self._pass(fresh)

    def drain(
        self,
        deliver: Callable[[list[Record]], None],
        first: Callable[[list[Record]], None] = lambda records: None,
    ) -> None:
        """Deliver all segments, some at a time. If `deliver` raises, the rest stays.

        `first` gets the records of all segments before `deliver` gets any, and does not get them again
        when that raises. A damaged segment stays where it is; the others are delivered.
        """
        while self._segments:
            self._begin(first)
            with self._lock:
                # those that came meanwhile have not begun
                keys = [key for key in self._segments[:SEGMENTS_AT_ONCE] if key in self._begun]
                # It may be ahead of these segments: all that it covers is delivered or stored.
                mark = Mark(clocks=dict(self._mark))
            read = {key: self._read(key) for key in keys}
            deliver([record for records in read.values() for record in records or ()])
            self.storage.put(MARK_KEY, mark.to_bytes())
            self.storage.delete(key for key, records in read.items() if records is not None)
            with self._lock:
                del self._segments[: len(keys)]
            self._begun.difference_update(keys)

    def _begin(self, first: Callable[[list[Record]], None]) -> None:
        """Give `first` the records of the segments that it has not had yet."""
        with self._lock:
            new = [key for key in self._segments if key not in self._begun]
        for start in range(0, len(new), SEGMENTS_AT_ONCE):
            part = new[start : start + SEGMENTS_AT_ONCE]
            first([record for key in part for record in self._read(key) or ()])
            self._begun.update(part)

    def set_aside(self, refusal: Refusal) -> None:
        """Keep a record of which MLflow does not take a part, beside the spool and for people."""
        content = refusal.to_bytes()
        digest = hashlib.sha256(content).hexdigest()[:8]
        clock, what = refusal.record.clock, quote(refusal.what, safe="")
        key = f"{REFUSED_FOLDER}/{clock:012d}-{what}-{digest}.json"
        log.error("event=record_refused key=%s reason=%s", self.storage.url(key), refusal.reason)
        self.storage.put(key, content)

    def _pass(self, records: Sequence[Record]) -> None:
        for record in records:
            series = _series(record)
            self._mark[series] = max(self._mark.get(series, -1), record.clock)

    def _read(self, key: str) -> tuple[Record, ...] | None:
        """The records of a segment; None, with a line in the log, if it is damaged."""
        try:
            return Segment.from_bytes(self.storage.get(key), self.storage.url(key)).records
        except DataError as error:
            log.error("event=segment_refused error=%s", error)
            return None

    def _read_mark(self) -> dict[str, int]:
        try:
            return dict(Mark.from_bytes(self.storage.get(MARK_KEY), self.storage.url(MARK_KEY)).clocks)
        except MissingError:
            return {}
        except DataError as error:
            # Without the mark a point may be delivered twice; stopping would lose all points.
            log.warning("event=mark_damaged error=%s", error)
            return {}


def _series(record: Record) -> str:
    return f"{record.kind}-{record.attempt}"
