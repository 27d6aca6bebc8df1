"""The run's live values at /metrics: one port a run, and a file by which Prometheus finds it."""

import json
import logging
import math
import os
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric, start_http_server
from prometheus_client.registry import Collector

from service.collapse.state import Kind
from service.errors import UsageError
from service.recording.record import EventAction, Record

log = logging.getLogger(__name__)

PREFIX = "gan_"
ANY_ADDRESS = ("", "0.0.0.0", "::")
LATE_TIMES, LATE_S = 1.5, 5.0
"""A visit may be so late against those before."""


def free_port(host: str) -> int:
    """A port of this host that is free now; UsageError if the host is not an address of this machine."""
    try:
        with socket.create_server((host, 0)) as probe:
            return probe.getsockname()[1]
    except OSError as error:
        raise UsageError(
            f"tracking.prometheus_host: {host} is not an address of this machine ({error});"
            " give 127.0.0.1, or 0.0.0.0 for all its addresses"
        ) from error


_Kind = TypeVar("_Kind", Gauge, Counter)


class _Visits(Collector):
    """Notes when a Prometheus, or anybody, reads the metrics; has none of its own."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=2)
        self._again = threading.Event()

    def collect(self) -> Iterable[Metric]:
        self._times.append(time.monotonic())
        self._again.set()
        return ()

    def await_next(self, limit_s: float) -> None:
        """Wait for the next visit if they come regularly: about as long as between the last two."""
        if len(self._times) == 2:
            self._again.clear()
            since_s = self._times[1] - self._times[0]
            self._again.wait(min(limit_s, LATE_TIMES * since_s + LATE_S))


class LiveMetrics:
    """Gauges named `gan_<value>`, `gan_up`, and the ages that alerts watch, served over HTTP.

    All carry the label `run`: where the metrics of many pods meet, nothing else names the run.
    """

    def __init__(self, host: str, port: int, run: str, about: Mapping[str, str] | None = None):
        self._registry = CollectorRegistry()
        self._run, self._about = run, dict(about or {})
        self._gauges: dict[str, Gauge] = {}
        self._checkpoint_time = self._progress_time = self._score_time = time.time()
        self._target: Path | None = None
        self._attempt: int | None = None
        self.host = host
        self.up(True)
        self.failed(False)
        started = self._gauge("start_time_seconds", "When this driver of the run began, since the epoch")
        started.set_to_current_time()
        self._info = self._new(Gauge, "run_info", "What runs", [*self._about, "attempt"])
        self._tell_attempt(0)
        self.watch(
            "checkpoint_age_seconds",
            "Seconds since the last committed checkpoint, or since the start",
            lambda: time.time() - self._checkpoint_time,
        )
        self.watch(
            "progress_age_seconds",
            "Seconds since the workers last reported, or since the start",
            lambda: time.time() - self._progress_time,
        )
        self.watch(
            "score_age_seconds",
            "Seconds since the last score, or since the start",
            lambda: time.time() - self._score_time,
        )
        self._collapse = self._new(Gauge, "collapse", "0 healthy, 1 warning, 2 collapsed", ["kind"])
        for kind in Kind:
            self._collapse.labels(run, kind).set(0)
        self._scores = self._new(Gauge, "score", "Scores of the newest evaluation", ["name"])
        self._rewinds = self._new(Counter, "rewinds", "Rewinds after a collapse")
        self._restarts = self._new(Counter, "restarts", "Groups of workers that failed and began again")
        for counter in (self._rewinds, self._restarts):
            counter.labels(run)  # shown from the start, as 0
        self._visits = _Visits()
        self._registry.register(self._visits)
        self.port = self._serve(host, port)

    def update(self, record: Record) -> None:
        """Show a record: one gauge for each value, created when it first appears.

        The value `images` is the workers' clock. Names with a dot belong to single weights and go
        only to MLflow.
        """
        if "images" in record.values:
            self._progress_time = time.time()
            self._tell_attempt(record.attempt)
        for name, value in record.values.items():
            if "." not in name:
                self._gauge(name).set(value)
        if record.checkpoint:
            self._checkpoint_time = record.time
            self._gauge("checkpoint_images", "Clock of the last committed checkpoint").set(record.clock)
        if record.note and record.note.verdict:
            verdict = record.note.verdict
            for kind in Kind:
                severity = verdict.level.severity if kind == verdict.kind else 0
                self._collapse.labels(self._run, kind).set(severity)
        if record.scores:
            self._score_time = record.time
            self._gauge("score_images", "Clock of the last scored checkpoint").set(record.clock)
        for name, value in record.scores.items():
            self._scores.labels(self._run, name).set(value)
        counters = {EventAction.REWIND: self._rewinds, EventAction.RESTART: self._restarts}
        if record.event and record.event.action in counters:
            counters[record.event.action].labels(self._run).inc()

    def watch(self, name: str, description: str, value: Callable[[], float]) -> None:
        """A gauge that calls `value` at every scrape; NaN when that fails, and the others are served."""

        def value_or_nan() -> float:
            try:
                return value()
            except Exception as error:
                log.info("event=gauge_failed name=%s error=%s", name, error)
                return math.nan

        self._gauge(name, description).set_function(value_or_nan)

    def up(self, running: bool) -> None:
        """1 while the run trains, 0 once it has ended."""
        self._gauge("up", "Whether the run is training").set(float(running))

    def failed(self, failed: bool) -> None:
        """1 if the run has ended for a reason that somebody has to mend."""
        self._gauge("failed", "Whether the run has ended badly").set(float(failed))

    def await_visit(self, limit_s: float) -> None:
        """Wait until a Prometheus that comes regularly has read what is shown now."""
        self._visits.await_next(limit_s)

    def announce(self, folder: str, key: str) -> None:
        """Write where this is served to `folder`/`key`.json, which Prometheus reads (`file_sd_configs`).

        The target has the label `run`, too, for what Prometheus itself says of it (`up`). A folder that
        cannot be written to only costs a warning.
        """
        host = socket.gethostname() if self.host in ANY_ADDRESS else self.host
        target = {"targets": [f"{host}:{self.port}"], "labels": {"run": self._run}}
        self._target = Path(folder) / f"{key}.json"
        unfinished = self._target.with_suffix(".unfinished")
        try:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_text(json.dumps([target]))
            os.replace(unfinished, self._target)
        except OSError as error:
            log.warning("event=target_not_written file=%s error=%s", self._target, error)

    def withdraw(self) -> None:
        """Withdraw the announcement, so that no alert fires for this run from now on."""
        if self._target:
            try:
                self._target.unlink(missing_ok=True)
            except OSError as error:
                log.warning("event=target_not_removed file=%s error=%s", self._target, error)

    def _gauge(self, name: str, description: str = "Last value that the run reported") -> Gauge:
        name = re.sub(r"\W", "_", name)
        if name not in self._gauges:
            self._gauges[name] = self._new(Gauge, name, description).labels(self._run)
        return self._gauges[name]

    def _new(self, kind: type[_Kind], name: str, description: str, labels: Iterable[str] = ()) -> _Kind:
        return kind(PREFIX + name, description, ["run", *labels], registry=self._registry)

    def _tell_attempt(self, attempt: int) -> None:
        if attempt != self._attempt:
            self._attempt = attempt
            self._info.clear()
            self._info.labels(self._run, *self._about.values(), attempt).set(1)

    def _serve(self, host: str, port: int) -> int:
        """The port that is served: another one if `port` is taken, 0 if there is none at all."""
        for candidate in (port, 0):
            try:
                server, _ = start_http_server(candidate, host, registry=self._registry)
                return server.server_port
            except OSError as error:
                log.warning("event=metrics_port port=%d error=%s", candidate, error)
        return 0
