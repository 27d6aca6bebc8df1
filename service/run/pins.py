"""Pins: no run sweeps a checkpoint while somebody loads it, to score, export or register it."""

import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Iterator

from service.errors import StorageError
from service.run.commits import Name
from service.storage import Storage

log = logging.getLogger(__name__)

FOLDER = "pins"
PIN_LIMIT_S = 3600.0
"""A pin counts for so long after it was first seen: its owner may have died."""


@contextlib.contextmanager
def pinned(storage: Storage, name: Name) -> Iterator[None]:
    """Keep a checkpoint from being swept; nothing where the caller may not write.

    A sweep that had begun before goes on: then the reader meets a MissingError, and can choose again.
    """
    key = f"{FOLDER}/{name.folder}/{uuid.uuid4().hex}"
    try:
        storage.put(key, b"")
    except StorageError as error:
        log.info("event=not_pinned checkpoint=%s error=%s", name.folder, error)
    try:
        yield
    finally:
        with contextlib.suppress(StorageError):
            storage.delete([key])


class Pins:
    """The pins as one run's sweeps see them; times are those of `clock`, in seconds."""

    def __init__(self, storage: Storage, clock: Callable[[], float] = time.monotonic):
        self._storage, self._clock = storage, clock
        self._seen: dict[str, float] = {}

    def folders(self) -> set[str]:
        """The folders of pinned checkpoints; pins that have been there for too long are deleted."""
        keys, now = self._storage.sizes(f"{FOLDER}/"), self._clock()
        self._seen = {key: self._seen.get(key, now) for key in keys}
        old = [key for key, since in self._seen.items() if now - since > PIN_LIMIT_S]
        self._storage.delete(old)
        held = self._seen.keys() - set(old)
        return {key.removeprefix(f"{FOLDER}/").rpartition("/")[0] for key in held}
