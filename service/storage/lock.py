"""The run lock: one holder for a folder, with a rising token, so that an old holder can do no harm.

It stands on conditional writes. A store that takes the condition and ignores it is found and refused.
"""

import logging
import os
import socket
import threading
import time
from typing import Annotated, ClassVar, Literal

import psutil
from pydantic import Field

from service.documents import Count, Document, Seconds
from service.errors import DataError, LockError, RefusedError, ServiceError, StorageError
from service.storage.base import ConflictError, MissingError, Storage

log = logging.getLogger(__name__)

LOCK_KEY = "lock.json"
LEASE_S = 60.0
LARGEST_TOKEN = 10**12
"""No folder has had more holders; the next one's token must be a valid one too."""
_POLL_S = 1.0
_NO_VERSION = '"none"'


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
        """Whether it is the same process, however often it renewed the lock or raised its token."""
        return (self.host, self.pid, self.started) == (other.host, other.pid, other.started)

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
        self._writing = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self, patience_s: float = 0) -> int:
        """Take the lock and return its token; LockError if a live process still holds it by then.

        A holder that may be dead is watched for the length of its lease, by this process's own clock:
        that of another host may be ahead of ours or behind. RefusedError if the storage cannot lock.
        """
        deadline, waiting = time.monotonic() + patience_s, False
        while True:
            try:
                return self._acquire()
            except LockError as error:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise
                if not waiting:
                    log.warning("event=lock_busy patience_s=%.0f error=%s", left, error)
                waiting = True
            time.sleep(min(_POLL_S, left))

    def _acquire(self) -> int:
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
            self._version = self.storage.put_if(LOCK_KEY, self._holder.to_bytes(), version)
        except ConflictError as error:
            raise LockError(
                f"{self.storage.address}: another process took it first; wait for it, end it, or"
                " choose another address"
            ) from error
        self._probe(self._holder)
        self._stop.clear()
        self._thread = threading.Thread(target=self._keep_renewing, name="run-lock", daemon=True)
        self._thread.start()
        return self._holder.token

    def advance(self, storage: Storage) -> int:
        """A higher token for this holder, written through `storage`, whose patience may be another.

        What still works with the token before commits nothing from now on. LockError if another process
        has taken the lock.
        """
        with self._writing:
            assert self._holder is not None
            ours = self._holder.model_copy(
                update={"token": self._holder.token + 1, "renewed": time.time()}
            )
            try:
                self._replace(ours, storage)
            except ConflictError as error:
                raise LockError(
                    f"{storage.address}: taken over by another process; this one writes nothing more"
                ) from error
            return self._holder.token

    def release(self) -> None:
        """Release the lock, once; the token stays, and the next holder's is one higher."""
        if self._stop.is_set():
            return
        self._stop.set()
        if self._thread:
            self._thread.join()
        if self._holder:
            try:
                self._replace(self._holder.model_copy(update={"pid": 0}), self.storage)
            except ServiceError as error:
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

    def renew(self) -> bool:
        """Renew the lease, which happens in the background too; False once the lock is lost."""
        try:
            with self._writing:
                assert self._holder is not None
                ours = self._holder.model_copy(update={"renewed": time.time()})
                self._replace(ours, self.storage)
        except (ConflictError, DataError) as error:
            log.error("event=lock_lost run=%s error=%s", self.storage.address, error)
            return False
        except StorageError as error:  # the lease covers a few failures
            log.warning("event=lock_not_renewed error=%s", error)
        return True

    def _keep_renewing(self) -> None:
        while not self._stop.wait(self.lease_s / 4) and self.renew():
            pass

    def _replace(self, holder: Holder, storage: Storage) -> None:
        """Write what is new of us; ConflictError if another process has taken the lock.

        An earlier write may have been applied though its answer was lost: what is there then is ours.
        """
        try:
            self._version = storage.put_if(LOCK_KEY, holder.to_bytes(), self._version)
        except ConflictError:
            present, version = read_holder(storage)
            if present is None or self._holder is None or not present.is_same(self._holder):
                raise
            holder = holder.model_copy(update={"token": max(holder.token, present.token)})
            self._version = storage.put_if(LOCK_KEY, holder.to_bytes(), version)
        self._holder = holder

    def _probe(self, holder: Holder) -> None:
        """RefusedError if the storage writes though a condition is not met.

        What it writes then is no more than a renewal.
        """
        other = holder.model_copy(update={"renewed": holder.renewed + 0.001})
        for condition, version in (("If-None-Match", None), ("If-Match", _NO_VERSION)):
            try:
                self.storage.put_if(LOCK_KEY, other.to_bytes(), version)
            except ConflictError:
                continue
            self.storage.put(LOCK_KEY, holder.model_copy(update={"pid": 0}).to_bytes())
            raise RefusedError(
                f"{self.storage.address}: this storage ignores {condition}, so two processes could train"
                " one run; use one with conditional writes, such as Amazon S3, MinIO or SeaweedFS"
            )


def check_token(storage: Storage, token: int) -> None:
    """LockError unless `token` is still the lock's. It keeps a superseded process from writing."""
    holder, _ = read_holder(storage)
    if holder is None or holder.token != token:
        raise LockError(
            f"{storage.address}: taken over by another process (its token is"
            f" {holder.token if holder else 'none'}, ours is {token}); this process writes nothing more"
        )
