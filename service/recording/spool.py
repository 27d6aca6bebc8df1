"""Records on their way: kept in the run directory until they are delivered, each once.

A segment is stored before it is delivered, the mark after it, and only then is the segment deleted.
A crash between any two of these leaves nothing missing; and what a resumed run records again, at a
clock that the mark has passed, is dropped.
"""

import json
import logging
import re
import threading
import uuid
from collections.abc import Callable, Sequence

from service.recording.record import Record
from service.storage import MissingError, Storage

log = logging.getLogger(__name__)

FOLDER = "spool"
MARK_KEY = f"{FOLDER}/mark.json"
_SEGMENT = re.compile(rf"{FOLDER}/\d+-\w+\.jsonl")
SEGMENTS_AT_ONCE = 100


class Spool:
    """Segments of records in a run's storage, oldest first."""

    def __init__(self, storage: Storage):
        self.storage = storage
        self._lock = threading.Lock()  # one thread may add while another drains
        self._mark = self._read_mark()
        self._segments = [key for key in storage.sizes(f"{FOLDER}/") if _SEGMENT.fullmatch(key)]
        numbers = [int(key.split("/")[1].split("-")[0]) for key in self._segments]
        self._next = 1 + max(numbers, default=0)
        for key in self._segments:
            self._pass(self._read(key))

    @property
    def empty(self) -> bool:
        """Whether all is delivered."""
        return not self._segments

    def add(self, records: Sequence[Record]) -> None:
        """Store the records that are beyond the mark; StorageError leaves all as it was."""
        fresh = [r for r in records if r.images > self._mark.get(_series(r), -1)]
        if fresh:
            key = f"{FOLDER}/{self._next:08d}-{uuid.uuid4().hex[:8]}.jsonl"
            self.storage.put(key, "\n".join(r.to_json() for r in fresh).encode())
            with self._lock:
                self._next += 1
                self._segments.append(key)
                self._pass(fresh)

    def drain(self, deliver: Callable[[list[Record]], None]) -> None:
        """Deliver all segments, some at a time; what `deliver` raises ends it, and the rest stays."""
        while self._segments:
            with self._lock:
                keys = self._segments[:SEGMENTS_AT_ONCE]
                # It may be ahead of these segments: what it covers is delivered or stored.
                mark = json.dumps(self._mark)
            deliver([record for key in keys for record in self._read(key)])
            self.storage.put(MARK_KEY, mark.encode())
            self.storage.delete(keys)
            with self._lock:
                del self._segments[: len(keys)]

    def _pass(self, records: Sequence[Record]) -> None:
        for record in records:
            series = _series(record)
            self._mark[series] = max(self._mark.get(series, -1), record.images)

    def _read(self, key: str) -> list[Record]:
        return [Record.from_json(line) for line in self.storage.get(key).decode().splitlines()]

    def _read_mark(self) -> dict[str, int]:
        try:
            return {str(k): int(v) for k, v in json.loads(self.storage.get(MARK_KEY)).items()}
        except MissingError:
            return {}
        except (ValueError, TypeError, AttributeError) as error:
            # Without it a replayed point may come twice; to stop recording would lose them all.
            log.warning("event=mark_damaged file=%s error=%s", self.storage.url(MARK_KEY), error)
            return {}


def _series(record: Record) -> str:
    return f"{record.kind}-{record.attempt}"
