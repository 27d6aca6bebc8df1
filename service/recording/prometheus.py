"""The run's live values at /metrics: one port a run."""

import logging
import re
import socket
import time

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from service.collapse.detector import KINDS, LEVELS
from service.errors import UsageError
from service.recording.record import Record

log = logging.getLogger(__name__)

PREFIX = "gan_"


def free_port(host: str) -> int:
    """A port of this host that is free now; UsageError where the host is none of this machine's."""
    try:
        with socket.create_server((host, 0)) as probe:
            return probe.getsockname()[1]
    except OSError as error:
        raise UsageError(
            f"tracking.prometheus_host: {host} is no address of this machine ({error});"
            " give 127.0.0.1, or 0.0.0.0 for all of its addresses"
        ) from error


class LiveMetrics:
    """Gauges named `gan_<value>`, and `gan_up`, `gan_checkpoint_age_seconds`, served over HTTP."""

    def __init__(self, host: str, port: int):
        self._registry = CollectorRegistry()
        self._gauges: dict[str, Gauge] = {}
        self._checkpoint_time: float | None = None
        self._started = time.time()
        self.up(True)
        age = Gauge(
            f"{PREFIX}checkpoint_age_seconds",
            "Seconds since the last committed checkpoint, or since the start",
            registry=self._registry,
        )
        about = "0 healthy, 1 warning, 2 collapsed"
        self._collapse = Gauge(f"{PREFIX}collapse", about, ["kind"], registry=self._registry)
        for kind in KINDS:
            self._collapse.labels(kind).set(0)
        self._rewinds = Counter(f"{PREFIX}rewinds", "Rewinds after a collapse", registry=self._registry)
        age.set_function(lambda: time.time() - (self._checkpoint_time or self._started))
        self.port = self._serve(host, port)

    def update(self, record: Record) -> None:
        """Show what a record says: a gauge for each value, made when it is first seen.

        Values in folders, such as those of single weights, are for MLflow alone.
        """
        for name, value in record.values.items():
            if "/" not in name:
                self._gauge(name).set(value)
        if record.checkpoint:
            self._checkpoint_time = record.time
        if record.note and "verdict" in record.note:
            verdict = record.note["verdict"]
            for kind in KINDS:
                level = LEVELS.index(verdict["level"]) if kind == verdict["kind"] else 0
                self._collapse.labels(kind).set(level)
        if record.event and record.event["action"] == "rewind":
            self._rewinds.inc()

    def up(self, running: bool) -> None:
        """1 while the run trains, 0 once it has ended."""
        self._gauge("up", "Whether the run is training").set(float(running))

    def _gauge(self, name: str, about: str = "Last value that the run reported") -> Gauge:
        name = PREFIX + re.sub(r"\W", "_", name)
        if name not in self._gauges:
            self._gauges[name] = Gauge(name, about, registry=self._registry)
        return self._gauges[name]

    def _serve(self, host: str, port: int) -> int:
        """The port served on; another than asked for where that is taken, 0 where none is to be had."""
        for candidate in (port, 0):
            try:
                server, _ = start_http_server(candidate, host, registry=self._registry)
                return server.server_port
            except OSError as error:
                log.warning("event=metrics_port port=%d error=%s", candidate, error)
        return 0
