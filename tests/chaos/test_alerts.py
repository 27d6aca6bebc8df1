"""Alerts for real: a run that hangs or dies, a Prometheus that scrapes it, and the rules."""

import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from cluster import local
from cluster.local import RULES, Stack
from tests.conftest import need_package, start_command, tiny_values
from tests.live import ask_prometheus, firing, hurry

pytestmark = pytest.mark.long

LIMIT_S = 200
IMAGES = 960


@pytest.fixture
def prometheus(tmp_path, monkeypatch) -> Iterator[Stack]:
    """The stack's Prometheus with the real rules, but `for` a second, and two scrapes in it."""
    need_package("/usr/bin/prometheus", "prometheus")
    monkeypatch.setattr(local, "RULES", hurry(tmp_path))
    monkeypatch.setattr(local, "SCRAPE", "500ms")
    stack = Stack.load(tmp_path / "stack")
    try:
        stack.up(["prometheus"])
        yield stack
    finally:
        stack.down()


def start_run(digits: Path, folder: Path, stack: Stack) -> subprocess.Popen[str]:
    values = tiny_values(
        digits,
        folder / "run",
        run={"images": IMAGES},
        data={"cache_dir": str(folder / "cache")},
        evaluation={"every_images": 160, "images": 64, "scores": ["swd"], "best": "swd"},
    )
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    return start_command(
        "service.train",
        *("--config", str(folder / "tiny.yaml")),
        RAY_ADDRESS="local",
        RAY_AUTH_MODE="token",
        GAN_PROMETHEUS_TARGETS=stack.environment["GAN_PROMETHEUS_TARGETS"],
    )


def value(stack: Stack, query: str) -> float | None:
    """The newest value of a query's only series; None while there is none."""
    result = ask_prometheus(stack, "query", query=query)["result"]
    return float(result[0]["value"][1]) if result else None


def wait_for(condition: Callable[[], Any], driver: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert driver is None or driver.poll() is None, driver.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def end(driver: subprocess.Popen[str]) -> None:
    """End a run and all that it started, whatever state it is in."""
    family = [psutil.Process(driver.pid)] if driver.poll() is None else []
    family += [child for parent in family for child in parent.children(recursive=True)]
    for process in family:
        process.kill()
    driver.communicate()


def test_a_run_that_hangs_and_one_that_is_killed_fire_their_alerts_until_they_are_mended(
    digits, prometheus, tmp_path
):
    driver = start_run(digits, tmp_path, prometheus)
    try:
        wait_for(lambda: value(prometheus, "gan_score_images"), driver)
        served = set(ask_prometheus(prometheus, "label/__name__/values"))
        asked_for = set(re.findall(r"\bgan_\w+", RULES.read_text()))
        assert {name for name in asked_for - served if not name.startswith("gan_gpu_")} == set()

        workers = workers_of(driver)
        assert len(workers) == 1
        for worker in workers:
            worker.send_signal(signal.SIGSTOP)
        try:
            wait_for(lambda: "GanNoProgress" in firing(prometheus), driver)
            alert = firing(prometheus)["GanNoProgress"]
        finally:
            for worker in workers:
                worker.send_signal(signal.SIGCONT)
        assert alert["labels"]["run"] == "run"
        assert alert["labels"]["severity"] == "critical"
        assert re.search(r"no report from the workers for [\d.]+", alert["annotations"]["description"])
        wait_for(lambda: "GanNoProgress" not in firing(prometheus), driver)

        assert value(prometheus, "gan_up") == 1
        assert "GanRunGone" not in firing(prometheus)
    finally:
        end(driver)
    wait_for(lambda: "GanRunGone" in firing(prometheus))
    (target,) = Path(prometheus.environment["GAN_PROMETHEUS_TARGETS"]).glob("*.json")
    target.unlink()
    wait_for(lambda: not ask_prometheus(prometheus, "targets")["activeTargets"])
    wait_for(lambda: not firing(prometheus))


def workers_of(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    family = psutil.Process(driver.pid).children(recursive=True)
    return [p for p in family if "ray::RayTrainWorker" in " ".join(p.cmdline())]
