"""What all workers read of the run's storage: the first one reads it, for all of them."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from enum import IntEnum

from service.engine.distributed import Workers
from service.errors import RefusedError, StorageError
from service.storage import MissingError, Storage

SIGN_EVERY_S = 5.0


class _Answer(IntEnum):
    """How a reading ended. All workers must raise the same error, for they go on together."""

    DATA = 0
    MISSING = 1
    REFUSED = 2
    FAILED = 3


_ERRORS = {
    _Answer.MISSING: MissingError,
    _Answer.REFUSED: RefusedError,
    _Answer.FAILED: StorageError,
}


def _read(read: Callable[[], bytes]) -> tuple[_Answer, bytes]:
    try:
        return _Answer.DATA, read()
    except StorageError as error:
        answer = next(answer for answer, kind in _ERRORS.items() if isinstance(error, kind))
        return answer, str(error).encode()


class Relay:
    """Objects of a storage, each read once for all workers: all ask for the same, in the same order."""

    def __init__(self, storage: Storage, workers: Workers):
        self.address = storage.address
        self._storage, self._workers = storage, workers

    def url(self, key: str) -> str:
        """The address of an object, for people."""
        return self._storage.url(key)

    def get(self, key: str) -> bytes:
        """The object; MissingError or StorageError, on all workers, as the first one met it."""
        return self._relay(lambda: self._storage.get(key))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Bytes of every object whose key starts with `prefix`, by key, sorted."""
        return json.loads(self._relay(lambda: json.dumps(self._storage.sizes(prefix)).encode()))

    def _relay(self, read: Callable[[], bytes]) -> bytes:
        if self._workers.count == 1:
            return read()
        with ThreadPoolExecutor(1, thread_name_prefix="relay") as thread:
            reading = thread.submit(_read, read) if self._workers.is_first else None
            # Small signs in between, because the others give up on one that is silent for too long.
            while not self._workers.agree(int(bool(reading and wait([reading], SIGN_EVERY_S).done))):
                pass
        answer, data = reading.result() if reading else (_Answer.DATA, b"")
        answer = _Answer(self._workers.agree(answer))
        data = self._workers.spread(data)
        if answer is not _Answer.DATA:
            raise _ERRORS[answer](data.decode())
        return data
