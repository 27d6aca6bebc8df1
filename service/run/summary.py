"""Where a run stands, read from its directory alone: without Ray, and whether or not anything runs."""

import time
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from service.collapse.state import Verdict
from service.config import Config
from service.documents import Document, reason
from service.engine.curriculum import curriculum_of
from service.errors import DataError, UsageError
from service.recording.status import STATUS_KEY, STATUS_S, StatusDocument
from service.run import commits, ranking
from service.run.directory import RUN_KEY, SWEEP_KEY, RunDocument
from service.run.failure import FAILURE_KEY, FailureDocument
from service.storage import MissingError, Storage
from service.storage.lock import Holder, read_holder

LATE_TIMES = 3.0
"""A status is out of date once it is so many times as old as it should be."""


_Kind = TypeVar("_Kind", bound=Document)


class State(StrEnum):
    """What a run is doing, in a word."""

    STARTING = "starting"
    TRAINING = "training"
    SILENT = "silent"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    DIED = "died"


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint: its folder's address, its clock, its age in seconds if that is known."""

    address: str
    clock: int
    age_s: float | None = None


@dataclass(frozen=True)
class Scored:
    """The score of a checkpoint: its clock, the deciding metric, and all values by name."""

    clock: int
    by: str
    values: dict[str, float]


@dataclass(frozen=True)
class Lock:
    """Who holds the run, or held it last: `renewed_s` seconds ago."""

    held: bool
    host: str
    pid: int
    token: int
    renewed_s: float


@dataclass(frozen=True)
class Summary:
    """A run as it stands; what is not known is None or empty.

    `clock` is that of the training while it runs, and otherwise that of the newest checkpoint, from
    which it would go on. `age_s` is the age of what the recorder wrote last: rate, stage, verdict and
    trouble are of then.
    """

    address: str
    key: str
    state: State
    clock: int
    end: int
    stage: str = ""
    images_per_s: float | None = None
    left_s: float | None = None
    verdict: Verdict | None = None
    attempt: int = 0
    checkpoint: Checkpoint | None = None
    last_score: Scored | None = None
    best_score: Scored | None = None
    error: str = ""
    trouble: str = ""
    still: str = ""
    lock: Lock | None = None
    age_s: float | None = None


def summarise(storage: Storage) -> Summary:
    """The run in this directory.

    UsageError if there is none, or a sweep; DataError if its run.json or its lock is damaged.
    """
    run = _read_run(storage)
    now = time.time()
    holder, _ = read_holder(storage)
    lock = _lock(holder, now) if holder else None
    status = _read(storage, STATUS_KEY, StatusDocument)
    failure = _read(storage, FAILURE_KEY, FailureDocument)
    names, _ = commits.find(storage)
    committed = names[-1].clock if names else 0
    end = status.end if status else _end(run)
    state = _state(status, lock, failure, committed >= end)
    runs = state in (State.TRAINING, State.SILENT)
    scores = ranking.read(storage, names)
    by_clock = sorted(scores.values(), key=lambda score: score.clock)
    ranked = ranking.order(scores)
    return Summary(
        address=storage.address,
        key=run.key,
        state=state,
        clock=max(status.clock, committed) if status and runs else committed,
        end=end,
        stage=status.stage if status else "",
        images_per_s=status.values.get("images_per_s") if status and runs else None,
        left_s=status.left_s if status and runs else None,
        verdict=status.verdict if status else None,
        attempt=status.attempt if status else 0,
        checkpoint=_checkpoint(storage, names, status, now),
        last_score=_scored(by_clock[-1]) if by_clock else None,
        best_score=_scored(scores[ranked[0]]) if ranked else None,
        error=failure.message if failure else status.error if status else "",
        trouble=status.trouble if status else "",
        still=status.still if status and runs else "",
        lock=lock,
        age_s=now - status.time if status else None,
    )


def _read_run(storage: Storage) -> RunDocument:
    try:
        return RunDocument.from_bytes(storage.get(RUN_KEY), storage.url(RUN_KEY))
    except MissingError as error:
        if storage.sizes(SWEEP_KEY):
            raise UsageError(f"{storage.address} holds a sweep; give one of its trials/") from error
        raise UsageError(f"{storage.address}: no run is there; give a run.dir") from error


def _read(storage: Storage, key: str, kind: type[_Kind]) -> _Kind | None:
    """The document; None if there is none, or a damaged one: then nobody knows."""
    try:
        return kind.from_bytes(storage.get(key), storage.url(key))
    except (MissingError, DataError):
        return None


def _end(run: RunDocument) -> int:
    """The clock at which the run ends, by the configuration that it began with."""
    try:
        config = Config.stored(run.config)
    except ValueError as error:
        raise DataError(
            f"{RUN_KEY}: its configuration is invalid ({reason(error)}); {run.remedy}"
        ) from error
    return config.run.images or curriculum_of(config).end


def _lock(holder: Holder, now: float) -> Lock:
    age_s = now - holder.renewed
    held = not holder.dead and (holder.is_here or abs(age_s) <= holder.lease_s)
    return Lock(held, holder.host, holder.pid, holder.token, age_s)


def _state(
    status: StatusDocument | None, lock: Lock | None, failure: FailureDocument | None, is_done: bool
) -> State:
    if lock and lock.held:
        if status is None or status.status != "RUNNING":
            return State.STARTING
        return (
            State.TRAINING if abs(time.time() - status.time) <= LATE_TIMES * STATUS_S else State.SILENT
        )
    if failure or (status and status.status == "FAILED"):
        return State.FAILED
    if is_done:
        return State.FINISHED
    if status and status.status == "KILLED":
        return State.INTERRUPTED
    return State.DIED


def _checkpoint(
    storage: Storage, names: list[commits.Name], status: StatusDocument | None, now: float
) -> Checkpoint | None:
    if not names:
        return None
    age_s = now - status.checkpoint_time if status and status.checkpoint_time else None
    return Checkpoint(storage.url(names[-1].folder), names[-1].clock, age_s)


def _scored(score: ranking.Score) -> Scored:
    return Scored(score.clock, score.by, score.values)
