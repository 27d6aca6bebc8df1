"""What tests of running things share: waiting for what comes, and reading /metrics."""

import contextlib
import json
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import yaml
from prometheus_client.parser import text_string_to_metric_families

from cluster.local import RULES, Stack
from service.recording.life import Beat
from service.recording.recorder import Leaving, RecorderClient
from service.recording.spool import FOLDER, MARK_KEY
from service.storage import Storage


def wait_for(condition: Callable[[], object], limit_s: float = 120.0) -> None:
    """Until it holds; fails after the limit."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def scrape(port: int) -> dict[str, float]:
    """The values at /metrics by name, with all labels but `run`."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    values = {}
    for sample in (sample for family in families for sample in family.samples):
        labels = [f'{key}="{value}"' for key, value in sorted(sample.labels.items()) if key != "run"]
        values[sample.name + (f"{{{','.join(labels)}}}" if labels else "")] = sample.value
    return values


def announced(folder: Path) -> list[dict]:
    """The targets that runs have written for a Prometheus into a folder."""
    return [target for file in folder.glob("*.json") for target in json.loads(file.read_text())]


def segments(storage: Storage) -> list[str]:
    """Keys of the records that a run's spool holds for later."""
    return [key for key in storage.sizes(f"{FOLDER}/") if key != MARK_KEY]


class SilentRecorder(RecorderClient):
    """A recorder without an actor, for workers that run outside Ray: it takes all and keeps nothing."""

    def __init__(self) -> None:
        super().__init__(None)

    def leaving(self) -> Leaving:
        """Nobody asked."""
        return Leaving.NO

    def beat(self, beat: Beat) -> bool:
        """Nobody waits for anybody."""
        return False

    def settle(self) -> None:
        """Nothing to wait for."""

    def _send(self, send: Callable[[], object]) -> None:
        """Nobody takes it."""


LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def listening(processes: Iterable[psutil.Process]) -> set[str]:
    """The addresses that these processes and all that they started listen on."""
    addresses = set()
    for process in processes:
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                sockets = one.net_connections(kind="inet")
                addresses |= {s.laddr.ip for s in sockets if s.status == psutil.CONN_LISTEN}
    return addresses


def hurry(folder: Path) -> Path:
    """The alert rules in a file of this folder, but each `for` a second."""
    content = yaml.safe_load(RULES.read_text())
    for rule in (rule for group in content["groups"] for rule in group["rules"]):
        if "alert" in rule:
            rule["for"] = "1s"
    hurried = folder / "rules.yml"
    hurried.write_text(yaml.safe_dump(content))
    return hurried


def ask_prometheus(stack: Stack, path: str, **parameters: object) -> Any:
    """The data that the stack's Prometheus answers with."""
    address = f"http://127.0.0.1:{stack.processes['prometheus'].port}/api/v1/{path}"
    with urllib.request.urlopen(f"{address}?{urllib.parse.urlencode(parameters)}", timeout=10) as answer:
        return json.load(answer)["data"]


def firing(stack: Stack) -> dict[str, dict[str, Any]]:
    """The alerts that fire now, by name."""
    alerts = ask_prometheus(stack, "alerts")["alerts"]
    return {a["labels"]["alertname"]: a for a in alerts if a["state"] == "firing"}
