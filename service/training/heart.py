"""A worker's heart: tells what the worker is doing, and ends it when it stands still."""

import faulthandler
import logging
import os
import socket
import tempfile
import threading
import time
from collections import deque
from dataclasses import dataclass, replace

from service.config import Config
from service.data.feeder import Feeders
from service.recording.life import Beat
from service.recording.record import Event, EventAction, Record
from service.recording.recorder import RecorderClient

log = logging.getLogger(__name__)

BEAT_S = 2.0
LEAST_LIMIT_S = 60.0
SLOWEST_TIMES = 5.0
FIRST_LIMIT_S = 1800.0
"""What is done for the first time may compile kernels."""
_RECENT = 20

STARTING = "starting"
REHEARSING = "rehearsing"
LOADING = "loading a checkpoint"
TRAINING = "training a cycle"
READING = "waiting for data"
MEASURING = "measuring"
RESPONDING = "responding to a verdict"
DRAWING = "drawing"
SAVING = "saving"
# They read or write whole checkpoints, and storage has limits of its own.
_UNHURRIED = (LOADING, RESPONDING, SAVING)


@dataclass(frozen=True)
class _Doing:
    """What the worker is doing at a clock, since when, and how long it may take."""

    what: str
    clock: int
    since: float
    limit_s: float
    span: str = ""


def first_limit_s(config: Config) -> float:
    """How long a worker may take for what may compile, or what waits for storage."""
    return max(FIRST_LIMIT_S, config.scale.hang_s or 0, 2 * config.storage.retry_s)


class Heart:
    """Beats in a thread while the worker trains; use as a context manager.

    A worker stands still when what it is doing takes longer than `scale.hang_s`; if that is None, longer
    than a minute or, if that is more, five times the slowest of late. It may take longer while another
    worker, which it may wait for, is in time with something else, and while data is read, decoded or
    asked for again.
    """

    def __init__(
        self,
        recorder: RecorderClient,
        token: int,
        rank: int,
        config: Config,
        feeders: Feeders,
    ):
        self._recorder, self._token, self._rank = recorder, token, rank
        self._hang_s, self._feeders = config.scale.hang_s, feeders
        self._timeout_s = config.storage.timeout_s
        self._first_limit_s = first_limit_s(config)
        self._place = f"process {os.getpid()} on {socket.gethostname()}"
        self._recent: dict[tuple[str, str], deque[float]] = {}
        self._doing = _Doing(STARTING, 0, time.monotonic(), self._first_limit_s)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heart", daemon=True)

    def __enter__(self) -> "Heart":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._recorder.forget(self._token, self._rank)

    def begin(self) -> None:
        """An attempt begins: its step is new, and what it does first may take longer once more."""
        self._recent.clear()

    def turn_to(self, what: str, clock: int, span: str = "") -> None:
        """From now on the worker does something else, or the same once more; each span has its pace."""
        now, before = time.monotonic(), self._doing
        times = self._recent.setdefault((before.what, before.span), deque(maxlen=_RECENT))
        times.append(now - before.since)
        self._doing = _Doing(what, clock, now, self._limit_s(what, span), span)

    def _limit_s(self, what: str, span: str) -> float:
        recent = self._recent.get((what, span))
        if not recent or what in _UNHURRIED:
            return self._first_limit_s
        return self._hang_s or max(LEAST_LIMIT_S, SLOWEST_TIMES * max(recent))

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S):
            doing, waiting = self._doing, self._feeders.waiting()
            if waiting:
                what, for_s = READING, waiting.for_s
                limit_s = self._hang_s or LEAST_LIMIT_S
                patient = waiting.may_end(limit_s, self._timeout_s)
            else:
                what, for_s = doing.what, time.monotonic() - doing.since
                limit_s, patient = doing.limit_s, False
            beat = Beat(self._token, self._rank, self._place, what, for_s, limit_s, patient)
            waits = self._recorder.beat(beat)  # which may take its time
            went_on = self._doing is not doing or (self._feeders.waiting() is None) != (waiting is None)
            if for_s > limit_s and not (patient or waits or went_on or self._stop.is_set()):
                self._recorder.beat(replace(beat, stands_still=True))
                self._end(doing, f"worker {self._rank} ({self._place}): {what} for {for_s:.0f} s")

    def _end(self, doing: _Doing, reason: str) -> None:
        """Write down where it stands, and end this process: the group starts again."""
        log.error("event=hang reason=%s", reason)
        with tempfile.TemporaryFile("w+") as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            log.error("event=stacks\n%s", file.read())
        event = Event(EventAction.HANG, reason, {"rank": self._rank})
        self._recorder.write(Record(doing.clock, time.time(), event=event))
        self._recorder.settle()
        os._exit(1)
