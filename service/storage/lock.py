"""The run lock: one holder for a folder, with a rising token, so that an old holder can do no harm."""

import logging
import os
import socket
import threading
import time
from typing import Annotated, ClassVar, Literal

import psutil
from pydantic import Field

from service.documents import Count, Document, Seconds
from service.errors import DataError, LockError, StorageError
from service.storage.base import ConflictError, MissingError, Storage

log = logging.getLogger(__name__)

LOCK_KEY = "lock.json"
LEASE_S = 60.0
LARGEST_TOKEN = 10**12
"""No folder has had more holders; the next one's token must be a valid one too."""
_POLL_S = 1.0


class Holder(Document):
    """Who holds the lock: process `pid`, started at `started`, on `host`; pid 0 once released.

    Times are in seconds since the epoch; `token` rises with every holder.
    """

    remedy: ClassVar[str] = "if no process uses this folder, delete the file"

    version: Literal[2] = 2
    token: Count
    host: Annotated[str, Field(max_length=255)]
    pid: Count
    started: Seconds
    renewed: Seconds
    lease_s: Annotated[float, Field(ge=0, le=86400)]

    @property
    def is_here(self) -> bool:
        """Whether it is a process of this host."""
        return self.host == socket.gethostname()

    @property
    def renews(self) -> bool:
        """Whether it is a process of this host, whose clock is ours, that renewed its lease in time."""
        return self.is_here and time.time() <= self.renewed + self.lease_s

    def is_same(self, other: "Holder") -> bool:
        """Whether it is the same process that took the lock once, however often it renewed it."""
        return (self.token, self.host, self.pid, self.started) == (
            other.token,
            other.host,
            other.pid,
            other.started,
        )

    @property
    def dead(self) -> bool:
        """Whether the holder released it, or was a process of this host that has ended."""
        if not self.pid:
            return True
        if not self.is_here:
            return False
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) > 1.0
        except (psutil.NoSuchProcess, ValueError):
            return True


def read_holder(storage: Storage) -> tuple[Holder | None, str | None]:
    """The present holder and the lock's version, or two Nones; DataError if the lock is damaged."""
    try:
        data, version = storage.get_versioned(LOCK_KEY)
    except MissingError:
        return None, None
    address = storage.url(LOCK_KEY)
    holder = Holder.from_bytes(data, address)
    if holder.token > LARGEST_TOKEN:
        raise DataError(f"{address}: damaged (token: {holder.token} is too large); {Holder.remedy}")
    return holder, version


class RunLock:
    """Held from `acquire` to `release`, renewed in the background."""

    def __init__(self, storage: Storage, lease_s: float = LEASE_S):
        self.storage = storage
        self.lease_s = lease_s
        self._holder: Holder | None = None
        self._version: str | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> int:
        """Take the lock and return its token; LockError if a live process holds it.

        A holder that may be dead is watched for the length of its lease, by this process's own clock:
        that of another host may be ahead of ours or behind.
        """
        holder, version = read_holder(self.storage)
        if holder and not holder.dead:
            holder, version = self._outwait(holder)
        process = psutil.Process()
        self._holder = Holder(
            token=holder.token + 1 if holder else 1,
            host=socket.gethostname(),
            pid=os.getpid(),
            started=process.create_time(),
            renewed=time.time(),
            lease_s=self.lease_s,
        )
        try:
            self._version = self._put(self._holder, version)
        except ConflictError as error:
            raise LockError(
                f"{self.storage.address}: another process took it first; wait for it, end it, or"
                " choose another address"
            ) from error
        self._thread = threading.Thread(target=self._renew, name="run-lock", daemon=True)
        self._thread.start()
        return self._holder.token

    def release(self) -> None:
        """Release the lock; the token stays, and the next holder's is one higher."""
        self._stop.set()
        if self._thread:
            self._thread.join()
        if self._holder:
            try:
                self._replace(self._holder.model_copy(update={"pid": 0}))
            except StorageError as error:
                log.warning("event=lock_not_released error=%s", error)

    def _outwait(self, holder: Holder) -> tuple[Holder | None, str | None]:
        present, version = read_holder(self.storage)
        if not holder.renews:
            log.warning(
                "event=lock_wait holder=%s pid=%d s=%.0f", holder.host, holder.pid, holder.lease_s
            )
            deadline = time.monotonic() + holder.lease_s
            while present == holder and time.monotonic() < deadline:
                time.sleep(_POLL_S)
                present, version = read_holder(self.storage)
        silent = present == holder and not holder.renews
        if present and not (silent or present.dead):
            raise LockError(
                f"{self.storage.address}: in use by process {present.pid} on {present.host};"
                " wait for it, end it, or choose another address"
            )
        return present, version

    def _renew(self) -> None:
        assert self._holder is not None
        while not self._stop.wait(self.lease_s / 4):
            try:
                self._replace(self._holder.model_copy(update={"renewed": time.time()}))
            except ConflictError:
                log.error("event=lock_lost run=%s", self.storage.address)
                return
            except StorageError as error:  # the lease covers a few failures
                log.warning("event=lock_not_renewed error=%s", error)

    def _replace(self, holder: Holder) -> None:
        """Write what is new of us; ConflictError if another process has taken the lock.

        An earlier write may have been applied though its answer was lost: what is there then is ours.
        """
        try:
            self._version = self._put(holder, self._version)
        except ConflictError:
            present, version = read_holder(self.storage)
            if present is None or self._holder is None or not present.is_same(self._holder):
                raise
            self._version = self._put(holder, version)
        self._holder = holder

    def _put(self, holder: Holder, version: str | None) -> str:
        return self.storage.put_if(LOCK_KEY, holder.to_bytes(), version)


def check_token(storage: Storage, token: int) -> None:
    """LockError unless `token` is still the lock's. It keeps a superseded process from writing."""
    holder, _ = read_holder(storage)
    if holder is None or holder.token != token:
        raise LockError(
            f"{storage.address}: taken over by another process (its token is"
            f" {holder.token if holder else 'none'}, ours is {token}); this process writes nothing more"
        )
