"""The run's live values at /metrics: one port a run."""

import logging
import re
import socket
import time
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Gauge, start_http_server

from service.errors import UsageError

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
        age.set_function(lambda: time.time() - (self._checkpoint_time or self._started))
        self.port = self._serve(host, port)

    def update(self, values: Mapping[str, float]) -> None:
        """Set a gauge for each value, made when it is first seen."""
        for name, value in values.items():
            self._gauge(name).set(value)

    def up(self, running: bool) -> None:
        """1 while the run trains, 0 once it has ended."""
        self._gauge("up", "Whether the run is training").set(float(running))

    def checkpoint_committed(self, at: float) -> None:
        """Note the time of a commit, in seconds since the epoch."""
        self._checkpoint_time = at

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
