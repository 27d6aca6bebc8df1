"""The last lines of each process's log, kept in the run's directory: pods that go take theirs along."""

import threading
from collections import deque

from service.storage import MissingError, Storage

FOLDER = "logs"
TAIL_BYTES = 1 << 20


class Tails:
    """Lines by the process that wrote them; `store` writes what is new to `logs/<process>.jsonl`."""

    def __init__(self, storage: Storage):
        self._storage = storage
        self._lock = threading.Lock()
        self._lines: dict[str, deque[bytes]] = {}
        self._sizes: dict[str, int] = {}
        self._changed: set[str] = set()
        self._known: set[str] = set()

    def add(self, process: str, line: str) -> None:
        """Keep a line; older ones go once there are more than a megabyte."""
        with self._lock:
            self._add(process, line.encode(errors="backslashreplace")[: TAIL_BYTES - 1])

    def store(self) -> None:
        """Write what has changed. Lines of an earlier process of this name stay in front."""
        with self._lock:
            changed, self._changed = self._changed, set()
        for process in sorted(changed):
            key = f"{FOLDER}/{process}.jsonl"
            try:
                if process not in self._known:
                    self._put_in_front(process, key)
                with self._lock:
                    content = b"".join(line + b"\n" for line in self._lines[process])
                self._storage.put(key, content)
            except Exception:
                with self._lock:
                    self._changed |= changed
                raise

    def _put_in_front(self, process: str, key: str) -> None:
        try:
            before = self._storage.get(key).splitlines()
        except MissingError:
            before = []
        with self._lock:
            since = self._lines[process]
            self._lines[process], self._sizes[process] = deque(), 0
            for line in (*before, *since):
                self._add(process, line)
        self._known.add(process)

    def _add(self, process: str, line: bytes) -> None:
        lines = self._lines.setdefault(process, deque())
        lines.append(line)
        size = self._sizes.get(process, 0) + len(line) + 1
        while size > TAIL_BYTES:
            size -= len(lines.popleft()) + 1
        self._sizes[process] = size
        self._changed.add(process)
