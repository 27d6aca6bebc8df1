"""The run's live values at /metrics: one port a run, and a file by which Prometheus finds it."""

import json
import logging
import os
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from service.collapse.state import Kind
from service.errors import UsageError
from service.recording.record import EventAction, Record

log = logging.getLogger(__name__)

PREFIX = "gan_"
ANY_ADDRESS = ("", "0.0.0.0", "::")


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


class LiveMetrics:
    """Gauges named `gan_<value>`, `gan_up`, and the ages that alerts watch, served over HTTP."""

    def __init__(self, host: str, port: int):
        self._registry = CollectorRegistry()
        self._gauges: dict[str, Gauge] = {}
        self._checkpoint_time = self._progress_time = time.time()
        self._target: Path | None = None
        self.host = host
        self.up(True)
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
        levels = "0 healthy, 1 warning, 2 collapsed"
        self._collapse = Gauge(f"{PREFIX}collapse", levels, ["kind"], registry=self._registry)
        for kind in Kind:
            self._collapse.labels(kind).set(0)
        scores = "Scores of the newest evaluation"
        self._scores = Gauge(f"{PREFIX}score", scores, ["name"], registry=self._registry)
        self._rewinds = Counter(f"{PREFIX}rewinds", "Rewinds after a collapse", registry=self._registry)
        self.port = self._serve(host, port)

    def update(self, record: Record) -> None:
        """Show a record: one gauge for each value, created when it first appears.

        The value `images` is the workers' clock. Names with a dot belong to single weights and go
        only to MLflow.
        """
        if "images" in record.values:
            self._progress_time = time.time()
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
                self._collapse.labels(kind).set(severity)
        for name, value in record.scores.items():
            self._scores.labels(name).set(value)
        if record.event and record.event.action == EventAction.REWIND:
            self._rewinds.inc()

    def watch(self, name: str, description: str, value: Callable[[], float]) -> None:
        """A gauge that calls `value` at every scrape."""
        self._gauge(name, description).set_function(value)

    def up(self, running: bool) -> None:
        """1 while the run trains, 0 once it has ended."""
        self._gauge("up", "Whether the run is training").set(float(running))

    def announce(self, folder: str, key: str, run: str) -> None:
        """Write where this is served to `folder`/`key`.json, which Prometheus reads (`file_sd_configs`).

        The label `run` is the run's name. A folder that cannot be written to only costs a warning.
        """
        host = socket.gethostname() if self.host in ANY_ADDRESS else self.host
        target = {"targets": [f"{host}:{self.port}"], "labels": {"run": run}}
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
        name = PREFIX + re.sub(r"\W", "_", name)
        if name not in self._gauges:
            self._gauges[name] = Gauge(name, description, registry=self._registry)
        return self._gauges[name]

    def _serve(self, host: str, port: int) -> int:
        """The port that is served: another one if `port` is taken, 0 if there is none at all."""
        for candidate in (port, 0):
            try:
                server, _ = start_http_server(candidate, host, registry=self._registry)
                return server.server_port
            except OSError as error:
                log.warning("event=metrics_port port=%d error=%s", candidate, error)
        return 0
