"""A job that fails for good: the next one ends at once in the same words, and somebody is told."""

import json
import os
import subprocess
import sys

import pytest
from ray.job_submission import JobSubmissionClient

from cluster import local
from service.cli import Exit
from service.run.summary import State, summarise
from tests.chaos.conftest import ChaosRun, tell
from tests.conftest import ROOT, need_package
from tests.live import firing, hurry, wait_for

pytestmark = pytest.mark.long

NAME = "lasting"
# A weight that no number of 32 bits outlives.
BROKEN = {"training": {"precision": "fp32", "drift": 1e39}, "collapse": {"action": "stop"}}


@pytest.fixture
def watched(cluster, tmp_path, monkeypatch) -> local.Stack:
    """The cluster, and a Prometheus that scrapes its runs often and rings soon."""
    need_package("/usr/bin/prometheus", "prometheus")
    monkeypatch.setattr(local, "RULES", hurry(tmp_path))
    monkeypatch.setattr(local, "SCRAPE", "500ms")
    cluster.up(["prometheus"])
    return cluster


def submit(run: ChaosRun, job: str) -> str:
    """Submit the run as a job of this name, as KubeRay does, and wait; returns all that it wrote."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--working-dir", "."]
    command += ["--submission-id", job, "--", "python", "-m", "service.train"]
    command += ["--config", str(run.config)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode != 0
    return done.stdout + done.stderr


def test_a_lasting_failure_is_met_once_told_twice_and_rings(watched, data, tmp_path):
    client = JobSubmissionClient()
    with ChaosRun(NAME, tmp_path, data, **BROKEN) as run:
        outputs = [submit(run, f"{NAME}-{number}") for number in (1, 2)]
        details = [client.get_job_info(f"{NAME}-{number}") for number in (1, 2)]
        logs = [client.get_job_logs(f"{NAME}-{number}") for number in (1, 2)]
    assert [each.driver_exit_code for each in details] == [Exit.LASTING, Exit.LASTING]
    last = [log.strip().splitlines()[-1] for log in logs]
    assert "collapsed at" in last[0]
    assert last[1] == last[0].removeprefix("error: ")
    assert "the run ended before, and no setting has changed since" in logs[1]
    assert "rehearsal passed" in logs[0]
    assert "rehearsal" not in logs[1]  # no worker was started
    took = [(each.end_time - each.start_time) / 1000 for each in details]
    tell(f"a job that fails for good: {took[0]:.1f} s, the next one {took[1]:.1f} s")
    assert took[1] < took[0]
    assert outputs

    wait_for(lambda: "GanRunGone" in firing(watched))
    alert = firing(watched)["GanRunGone"]
    assert (alert["labels"]["run"], alert["labels"]["severity"]) == (NAME, "critical")

    kept = run.storage.sizes("logs/")
    assert {"logs/worker-0.jsonl"} <= kept.keys()
    lines = [json.loads(line) for line in run.storage.get("logs/worker-0.jsonl").splitlines()]
    failed = [line for line in lines if line.get("event") == "worker_failed"]
    assert "collapsed at" in failed[-1]["traceback"]
    summary = summarise(run.storage)
    assert summary.state == State.FAILED
    assert summary.error in logs[0]
