"""The recorder: one Ray actor a run, which owns MLflow and Prometheus. No worker waits for it."""

import logging
import math
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from service import logs
from service.recording.forecast import Forecast
from service.recording.life import Beat, Life, Sign, longest_still
from service.recording.mlflow import Description, MlflowLog
from service.recording.pictures import GridLook, grid_key, grid_png
from service.recording.prometheus import LiveMetrics
from service.recording.record import EventAction, Record, Refusal
from service.recording.spectra import PAGE_KEY, Spectra
from service.recording.spool import REFUSED_FOLDER, Spool
from service.recording.status import STATUS_KEY, STATUS_S, RunStatus, Status, StatusDocument, finite
from service.recording.tails import Tails
from service.storage import FolderStorage, open_storage

log = logging.getLogger(__name__)

FLUSH_S = 2.0
LONGEST_PAUSE_S = 30.0
PAGE_S = 300.0
"""A run that trains draws its spectra anew this often."""
SETTLE_LIMIT_S = 10.0
ANSWER_LIMIT_S = 10.0


class Leaving(IntEnum):
    """Whether the workers are to stop: at their next checkpoint, or saved at their next look."""

    NO = 0
    AT_COMMIT = 1
    AT_LOOK = 2


class Recorder:
    """Spools each record before it answers, and delivers records in the background.

    `end` is the clock at which the run ends. `intervals` are gauges with constant values; `targets` is a
    folder to announce /metrics in. One that `owns_process` writes the process's log, too.
    """

    def __init__(
        self,
        run_dir: str,
        description: Description,
        prometheus_host: str,
        prometheus_port: int,
        retry_s: float,
        end: int,
        intervals: Mapping[str, float] | None = None,
        targets: str | None = None,
        owns_process: bool = False,
    ):
        self._storage = open_storage(run_dir, retry_s)
        self._mlflow = MlflowLog(description)
        about = {"key": description.key, "commit": description.tags.get("mlflow.source.git.commit", "")}
        self._live = LiveMetrics(prometheus_host, prometheus_port, description.name, about)
        self._live.update(Record(0, 0.0, values=dict(intervals or {})))
        self._fresh: list[Record] = []
        self._unsaved: dict[str, bytes] = {}
        self._lock, self._forecasting = threading.Lock(), threading.Lock()
        self._stop = threading.Event()
        self._latest: dict[str, Any] = {}
        self._trouble, self._refused = "", 0
        self._delivered = self._started = time.time()
        self._end = end
        self._forecast: Forecast | None = None
        self._attempt, self._error = 0, ""
        self._committed: float | None = None
        self._status: RunStatus = "RUNNING"
        self._written_at = -math.inf
        self._tails = Tails(self._storage)
        self._spectra = Spectra(self._storage)
        self._spectra_due = False
        self._page: bytes | None = None
        self._drawn_at = time.monotonic()
        if owns_process:
            logs.begin(
                lambda line: self._tails.add("recorder", line), run=description.name, role="recorder"
            )
        self._leaving = Leaving.NO
        self._life = Life()
        self._spool: Spool | None = None
        self._finish: Callable[[], None] = lambda: None
        self._watch(run_dir)
        if targets:
            self._live.announce(targets, description.key)
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)
        self._thread.start()

    def _watch(self, run_dir: str) -> None:
        """Let each scrape read how the recorder itself is doing."""
        self._live.watch(
            "recorder_storage_retries",
            "Storage retries of the recorder in the run directory, since its start",
            lambda: self._storage.traffic.retries,
        )
        self._live.watch(
            "records_refused",
            "Parts of records that MLflow refused, since the recorder's start",
            lambda: self._refused,
        )
        self._live.watch(
            "spool_segments",
            "Stored pieces of the records that MLflow has not got yet",
            lambda: self._spool.depth if self._spool else 0,
        )
        self._live.watch(
            "delivery_age_seconds",
            "Seconds since MLflow had all records, or since the recorder's start",
            lambda: time.time() - self._delivered,
        )
        self._live.watch("left_seconds", "Expected seconds to the end of the run", self._left_s)
        if isinstance(self._storage, FolderStorage):
            self._live.watch(
                "run_dir_free_bytes",
                "Free bytes on the disk of run.dir",
                lambda: shutil.disk_usage(run_dir).free,
            )

    def write(self, record: Record) -> None:
        """Take a record. On return it is safe in the spool, unless storage fails at this moment."""
        self._try(lambda: self._live.update(record))
        self._try(lambda: self._spectra.add(record))
        self._latest |= record.values
        if record.kind == "values":  # others, such as a score, may be of an earlier clock
            self._latest["clock"] = record.clock
            self._attempt = record.attempt
        if record.checkpoint:
            self._committed = record.time
            self._spectra_due = True
            self._written_at = -math.inf  # soon
        if record.event and record.event.action in (EventAction.RESTART, EventAction.HANG):
            self._error = record.event.reason
        if record.note:
            if record.note.forecast:
                self._forecast = Forecast(record.note.forecast, self._end)
            self._latest |= {name: value for name, value in vars(record.note).items() if value}
        if record.kind != "values" or record.values:
            with self._lock:
                self._fresh.append(record)
                self._try(self._store)

    def draw(self, record: Record, images: NDArray[np.uint8], look: GridLook) -> None:
        """Make a grid of the images, store it in the run directory, and record it."""
        key = grid_key(record.clock, record.attempt)
        with self._lock:
            self._unsaved[key] = grid_png(images, look)
        self.write(Record(record.clock, record.time, record.attempt, picture=key))

    def log(self, process: str, line: str) -> None:
        """Keep a line of another process's log."""
        self._tails.add(process, line)

    def latest(self) -> dict[str, Any]:
        """The newest values and notes.

        `trouble` says in words why deliveries fail, and `still` whom the others wait for, or "".
        """
        still = longest_still(self.signs())
        now = {"trouble": self._trouble, "still": still.in_words() if still else ""}
        return self._latest | now | {"metrics_port": self._live.port}

    def beat(self, beat: Beat, worker: Any, node: str) -> bool:
        """Take a worker's sign of life; returns whether it may be waiting for another one."""
        return self._life.take(beat, worker, node, time.monotonic())

    def forget(self, token: int, rank: int) -> None:
        """A worker of the group with this token has ended in order."""
        self._life.forget(token, rank)

    def signs(self) -> list[Sign]:
        """The newest sign of life of each worker."""
        return self._life.signs(time.monotonic())

    def leave(self, leaving: Leaving) -> None:
        """The driver's wish, which the workers ask for; NO takes all back, others only add to it."""
        self._leaving = leaving and max(self._leaving, leaving)

    def stay(self) -> None:
        """Take AT_COMMIT back; whoever is asked to end, ends."""
        if self._leaving == Leaving.AT_COMMIT:
            self._leaving = Leaving.NO

    def leaving(self) -> Leaving:
        """The driver's last wish."""
        return self._leaving

    def settle(self) -> None:
        """Do nothing: calls are answered in order, so all that was sent before is spooled by then."""

    def close(self, status: Status, tags: dict[str, str], limit_s: float, error: str = "") -> str:
        """Deliver what is left and end the MLflow run within `limit_s`; returns "" or the obstacle.

        `error` says why it ends, if that is not its own end.
        Undelivered records stay in the spool for the next start of this run. A run that FAILED stays
        announced to Prometheus, whose alert then fires.
        """
        deadline = time.monotonic() + limit_s
        self._live.up(False)
        self._live.failed(status == "FAILED")
        self._status, self._error = status, error
        self._try(self._write_status)
        self._try(self._tails.store)
        self._finish = lambda: self._mlflow.finish(status, tags | self._told_refusals())
        self._stop.set()
        self._thread.join(limit_s)
        self._live.await_visit(deadline - time.monotonic())
        if status != "FAILED":
            self._live.withdraw()
        if self._thread.is_alive():
            return self._trouble or f"MLflow did not answer within {limit_s:.0f} s"
        return ""

    def _told_refusals(self) -> dict[str, str]:
        """A tag that counts what MLflow has refused since the run began."""
        refused = len(self._storage.sizes(f"{REFUSED_FOLDER}/"))
        return {"gan.refused": f"{refused}, see refused/ in run.dir"} if refused else {}

    def _work(self) -> None:
        """Deliver at intervals; after `close`, deliver the rest and finish the MLflow run."""
        pause = FLUSH_S
        self._try(self._mlflow.open)
        while not self._stop.wait(pause):
            self._trouble = self._try(lambda: self._flush_and(lambda: None))
            if time.monotonic() >= self._written_at + STATUS_S:
                self._try(self._write_status)
                self._try(self._tails.store)
            self._try(self._keep_spectra)
            pause = min(2 * pause, LONGEST_PAUSE_S) if self._trouble else FLUSH_S
        self._try(self._draw_spectra)
        while trouble := self._try(lambda: self._flush_and(self._finish)):
            self._trouble = trouble
            time.sleep(FLUSH_S)

    def _flush_and(self, then: Callable[[], None]) -> None:
        with self._lock:
            spool = self._store()

        def set_aside(refusals: Iterable[Refusal]) -> None:
            for refusal in refusals:
                spool.set_aside(refusal)
                self._refused += 1

        # Curves do not wait for pictures: where files are kept may be away alone.
        spool.drain(
            lambda records: set_aside(self._mlflow.log_files(records, self._storage.get)),
            first=lambda records: set_aside(self._mlflow.log_points(records)),
        )
        self._delivered = time.time()
        if self._page:
            self._mlflow.log_page(self._page, PAGE_KEY)
            self._page = None
        then()

    def _keep_spectra(self) -> None:
        """Draw them now and then, and keep them when a checkpoint has been committed.

        A run that resumes from there records later looks again, so none is missing.
        """
        due, self._spectra_due = self._spectra_due, False
        if time.monotonic() >= self._drawn_at + PAGE_S:
            self._draw_spectra()
        elif due:
            self._spectra.store()

    def _draw_spectra(self) -> None:
        self._drawn_at = time.monotonic()
        self._page = self._spectra.draw() or self._page

    def _write_status(self) -> None:
        """Write down in the run's directory where it stands."""
        self._written_at = time.monotonic()
        latest, left_s = self.latest(), self._left_s()
        values = {key: value for key, value in self._latest.items() if key != "clock"}
        document = StatusDocument(
            time=time.time(),
            started=self._started,
            status=self._status,
            clock=latest.get("clock", 0),
            end=self._end,
            attempt=self._attempt,
            stage=latest.get("stage", ""),
            verdict=latest.get("verdict"),
            values=finite(values),
            left_s=left_s if math.isfinite(left_s) else None,
            checkpoint_time=self._committed,
            trouble=latest["trouble"],
            still=latest["still"],
            error=self._error,
        )
        self._storage.put(STATUS_KEY, document.to_bytes())

    def _left_s(self) -> float:
        """Expected seconds to the end; NaN until the rehearsal, or the pace, is known."""
        with self._forecasting:  # an older clock that came later would count as a rewind
            clock, pace = self._latest.get("clock", 0), self._latest.get("images_per_s", math.nan)
            if self._forecast:
                return self._forecast.left_s(clock, time.monotonic())
        return (self._end - clock) / pace

    def _store(self) -> Spool:
        """Save pictures, then spool fresh records; the spool opens when storage first answers."""
        for key in list(self._unsaved):
            self._storage.put(key, self._unsaved[key])
            del self._unsaved[key]
        if self._spool is None:
            self._spool = Spool(self._storage)
        self._spool.add(self._fresh)
        self._fresh = []
        return self._spool

    def _try(self, act: Callable[[], Any]) -> str:
        """Do it; returns what went wrong, in words. Trouble with tracking never stops a training."""
        try:
            act()
            return ""
        except Exception as error:
            trouble = f"{type(error).__name__}: {error}".splitlines()[0]
            log.warning("event=tracking_failed kept_in_spool=true error=%s", trouble)
            return trouble


def start_recorder(name: str, **settings: Any) -> "RecorderClient":
    """The run's recorder as a Ray actor on this node; Ray restarts it whenever it dies."""
    here = ray.get_runtime_context().get_node_id()
    actor = (
        ray.remote(Recorder)
        .options(
            name=name,
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,  # calls during a restart wait for it
            scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
        )
        .remote(owns_process=True, **settings)
    )
    return RecorderClient(actor)


class RecorderClient:
    """The caller's end of the actor, which travels to workers: it sends and goes on."""

    def __init__(self, actor: Any):
        self._actor = actor
        self._question: Any = None

    def write(self, record: Record) -> None:
        """Send a record."""
        self._send(lambda: self._actor.write.remote(record))

    def draw(self, record: Record, images: NDArray[np.uint8], look: GridLook) -> None:
        """Send uint8 images [n, h, w, c] for a grid."""
        self._send(lambda: self._actor.draw.remote(record, images, look))

    def log(self, process: str, line: str) -> None:
        """Send a line of this process's log."""
        self._send(lambda: self._actor.log.remote(process, line))

    def leave(self, leaving: Leaving) -> None:
        """Let the workers know whether they are to stop."""
        self._send(lambda: self._actor.leave.remote(leaving))

    def stay(self) -> None:
        """Let the workers know that they need not stop at a commit."""
        self._send(lambda: self._actor.stay.remote())

    def leaving(self) -> Leaving:
        """The answer, if it has come, to the question asked at the last call: no worker waits for it."""
        try:
            before, self._question = self._question, None
            if before is not None and not ray.wait([before], timeout=0)[0]:
                self._question = before
                return Leaving.NO
            self._question = self._actor.leaving.remote()
            return Leaving.NO if before is None else ray.get(before)
        except Exception as error:
            log.info("event=recorder_silent error=%s", error)
            return Leaving.NO

    def beat(self, beat: Beat) -> bool:
        """Give a sign of life of this worker; whether it may be waiting for another, or nobody knows."""
        try:
            here = ray.get_runtime_context()
            sent = self._actor.beat.remote(beat, here.current_actor, here.get_node_id())
            return ray.get(sent, timeout=ANSWER_LIMIT_S)
        except Exception as error:
            log.info("event=recorder_silent error=%s", error)
            return True

    def forget(self, token: int, rank: int) -> None:
        """A worker of the group with this token ends in order."""
        self._send(lambda: self._actor.forget.remote(token, rank))

    def signs(self) -> list[Sign]:
        """The newest sign of life of each worker; none while the recorder restarts."""
        try:
            return ray.get(self._actor.signs.remote(), timeout=ANSWER_LIMIT_S)
        except Exception as error:
            log.info("event=recorder_silent error=%s", error)
            return []

    def settle(self) -> None:
        """Wait for a limited time until all that was sent is in the spool."""
        self._send(lambda: ray.get(self._actor.settle.remote(), timeout=SETTLE_LIMIT_S))

    def latest(self) -> dict[str, Any]:
        """The newest values and notes by name; nothing while the recorder restarts."""
        try:
            return ray.get(self._actor.latest.remote(), timeout=ANSWER_LIMIT_S)
        except Exception as error:
            log.info("event=recorder_silent error=%s", error)
            return {}

    def port(self) -> int:
        """The port of /metrics; waits for the actor, and raises Ray's error if it cannot start."""
        return ray.get(self._actor.latest.remote())["metrics_port"]

    def close(self, status: Status, tags: dict[str, str], limit_s: float, error: str = "") -> str:
        """End the MLflow run within `limit_s`; "" or what MLflow did not get, and why."""
        try:
            closed = self._actor.close.remote(status, tags, limit_s, error)
            return ray.get(closed, timeout=limit_s + ANSWER_LIMIT_S)
        except Exception as error:
            return str(error) or type(error).__name__

    def _send(self, send: Callable[[], Any]) -> None:
        try:
            send()
        except Exception as error:
            log.warning("event=recorder_silent error=%s", error)
