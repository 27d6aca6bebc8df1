"""The recorder: one Ray actor a run that owns MLflow and Prometheus; no worker waits for it."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from service.recording.mlflow import Description, MlflowLog
from service.recording.pictures import grid_key, grid_png
from service.recording.prometheus import LiveMetrics
from service.recording.record import Record
from service.recording.spool import Spool
from service.storage import open_storage

log = logging.getLogger(__name__)

FLUSH_S = 2.0
LONGEST_PAUSE_S = 30.0
SETTLE_LIMIT_S = 10.0


class Recorder:
    """Spools every record before the next call is answered, and delivers them in the background.

    `intervals` are gauges that stay as they are; `targets` is a folder to announce /metrics in.
    """

    def __init__(
        self,
        run_dir: str,
        description: Description,
        prometheus_host: str,
        prometheus_port: int,
        retry_s: float,
        intervals: Mapping[str, float] | None = None,
        targets: str | None = None,
    ):
        self._storage = open_storage(run_dir, retry_s)
        self._mlflow = MlflowLog(description)
        self._live = LiveMetrics(prometheus_host, prometheus_port)
        self._live.update(Record(0, 0.0, values=dict(intervals or {})))
        self._live.watch(
            "recorder_storage_retries",
            "Second tries of the recorder at the run directory, since it was started",
            lambda: self._storage.traffic.retries,
        )
        if targets:
            self._live.announce(targets, description.key, description.name)
        self._fresh: list[Record] = []
        self._unsaved: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._latest: dict[str, Any] = {}
        self._trouble = ""
        self._spool: Spool | None = None
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)
        self._thread.start()

    def write(self, record: Record) -> None:
        """Take a record; it is safe in the spool on return, unless storage fails just now."""
        self._try(lambda: self._live.update(record))
        self._latest |= {"images": record.images, **record.values, **(record.note or {})}
        if record.event:
            self._latest["event"] = {"images": record.images, **record.event}
        if record.kind != "values" or record.values:
            with self._lock:
                self._fresh.append(record)
                self._try(self._store)

    def draw(self, record: Record, images: NDArray[np.uint8], columns: int, pixels: int) -> None:
        """Make a grid of the images, keep it in the run directory, and take the record of it."""
        key = grid_key(record.images, record.attempt)
        with self._lock:
            self._unsaved[key] = grid_png(images, columns, pixels)
        self.write(Record(record.images, record.time, record.attempt, picture=key))

    def latest(self) -> dict[str, Any]:
        """The newest values and notes, with `trouble` in words while deliveries fail."""
        return self._latest | {"trouble": self._trouble, "metrics_port": self._live.port}

    def settle(self) -> None:
        """Answered once all that was sent before is spooled: calls are taken in their order."""

    def close(self, status: str, tags: dict[str, str], limit_s: float) -> str:
        """Deliver what is left and end the MLflow run, within `limit_s`; "" or what stood in the way.

        What could not be delivered stays in the spool, for the next start of this run. A run that
        FAILED stays announced to Prometheus, which will miss it: somebody is to look.
        """
        self._live.up(False)
        if status != "FAILED":
            self._live.withdraw()
        self._stop.set()
        self._thread.join(limit_s)
        deadline = time.monotonic() + limit_s
        while True:
            trouble = self._try(lambda: self._flush_and(lambda: self._mlflow.finish(status, tags)))
            if not trouble or time.monotonic() > deadline:
                return trouble
            time.sleep(FLUSH_S)

    def _work(self) -> None:
        pause = FLUSH_S
        self._try(self._mlflow.open)
        while not self._stop.wait(pause):
            self._trouble = self._try(lambda: self._flush_and(lambda: None))
            pause = min(2 * pause, LONGEST_PAUSE_S) if self._trouble else FLUSH_S

    def _flush_and(self, then: Callable[[], None]) -> None:
        with self._lock:
            spool = self._store()
        spool.drain(lambda records: self._mlflow.deliver(records, self._storage.get))
        then()

    def _store(self) -> Spool:
        """Save pictures, then move what is fresh into the spool, opened when storage first answers."""
        for key in list(self._unsaved):
            self._storage.put(key, self._unsaved[key])
            del self._unsaved[key]
        if self._spool is None:
            self._spool = Spool(self._storage)
        self._spool.add(self._fresh)
        self._fresh = []
        return self._spool

    def _try(self, act: Callable[[], Any]) -> str:
        """Whatever goes wrong with tracking is told, and nothing of it stops a training."""
        try:
            act()
            return ""
        except Exception as error:
            trouble = f"{type(error).__name__}: {error}".splitlines()[0]
            log.warning("event=tracking_failed kept_in_spool=true error=%s", trouble)
            return trouble


def start_recorder(name: str, **settings: Any) -> Any:
    """The run's recorder as a Ray actor on this node, restarted whenever it dies."""
    here = ray.get_runtime_context().get_node_id()
    return (
        ray.remote(Recorder)
        .options(
            name=name,
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,  # what is sent while it restarts waits for it
            scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
        )
        .remote(**settings)
    )


class RecorderClient:
    """The worker's end: sends and goes on, whatever becomes of the recorder."""

    def __init__(self, actor: Any):
        self._actor = actor

    def write(self, record: Record) -> None:
        """Send a record."""
        self._send(lambda: self._actor.write.remote(record))

    def draw(self, record: Record, images: NDArray[np.uint8], columns: int, pixels: int) -> None:
        """Send uint8 images [n, h, w, c] for a grid."""
        self._send(lambda: self._actor.draw.remote(record, images, columns, pixels))

    def settle(self) -> None:
        """Wait, for a limited time, until all that was sent is safe in the spool."""
        self._send(lambda: ray.get(self._actor.settle.remote(), timeout=SETTLE_LIMIT_S))

    def _send(self, send: Callable[[], Any]) -> None:
        try:
            send()
        except Exception as error:
            log.warning("event=recorder_silent error=%s", error)
