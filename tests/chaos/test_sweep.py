"""A trial's driver is killed, then the sweep's own: every trial is there once, and none is lost."""

import contextlib
import csv
import io
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import psutil
import pytest
import yaml

from cluster.local import BUCKET
from service.run import commits
from service.storage import Storage, open_storage
from service.storage.lock import read_holder
from tests.chaos.conftest import LIMIT_S, tell
from tests.conftest import run_command, start_command, tiny_values

pytestmark = pytest.mark.long

TRIALS, TRIAL_IMAGES, EVERY = 2, 480, 80
ADDRESS = f"s3://{BUCKET}/sweeps/chaos"


@pytest.fixture
def command(data, tmp_path) -> list[str]:
    """A sweep of two short trials that optuna chooses."""
    values = tiny_values(
        data,
        f"s3://{BUCKET}/unused",
        run={"images": TRIAL_IMAGES},
        checkpoint={"every_images": EVERY},
        tracking={"every_images": EVERY, "uri": os.environ["MLFLOW_TRACKING_URI"]},
        evaluation={"images": 64, "scores": ["swd"], "best": "swd"},
    )
    space = {
        "training.lr_generator": {"loguniform": [1e-5, 1e-3]},
        "training.d_steps": {"choice": [1, 2]},
    }
    return [
        *("--config", write(tmp_path / "tiny.yaml", values)),
        *("--space", write(tmp_path / "space.yaml", space)),
        *("--dir", ADDRESS, "--search", "optuna", "--trials", str(TRIALS), "--scheduler", "none"),
    ]


def write(path: Path, content: dict) -> str:
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_a_sweep_outlives_a_trial_and_itself_and_ends_with_every_trial_once(cluster, command):
    with started(command) as sweep:
        wait_for(newest, sweep, "start of a sweep to its first commit")
        trial, first = newest()
        holder, _ = read_holder(trial)
        psutil.Process(holder.pid).kill()
        wait_for(lambda: newest()[1].token > first.token, sweep, "SIGKILL of a trial to new commits")
    code, output = run_command("service.sweep", *command)
    assert code == 0, output

    rows = list(csv.DictReader(io.StringIO(open_storage(ADDRESS).get("trials.csv").decode())))
    assert [row["state"] for row in rows] == ["finished"] * TRIALS
    assert len({row["training.lr_generator"] for row in rows}) == TRIALS
    client = mlflow.MlflowClient()
    for row in rows:
        storage = open_storage(f"{ADDRESS}/trials/{row['trial']}")
        assert commits.newest_clock(storage) == TRIAL_IMAGES
        assert read_holder(storage)[0].pid == 0
        (run,) = client.search_runs(
            [client.get_experiment_by_name("gan-training").experiment_id],
            f"tags.mlflow.runName = '{row['trial']}'",
        )
        assert run.info.status == "FINISHED"


@contextlib.contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """The sweep's own process, which is killed in the end."""
    process = start_command("service.sweep", *command)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def newest() -> tuple[Storage, commits.Name] | None:
    """The newest checkpoint of all trials, and the trial's directory."""
    names = {key.split("/")[1] for key in open_storage(ADDRESS).sizes("trials/")}
    trials = [open_storage(f"{ADDRESS}/trials/{name}") for name in names]
    found = [(name, trial) for trial in trials for name in commits.find(trial)[0]]
    name, trial = max(found, key=lambda each: each[0], default=(None, None))
    return name and (trial, name)


def wait_for(condition, process: subprocess.Popen[str], what: str) -> None:
    start = time.monotonic()
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < start + LIMIT_S, what
        time.sleep(0.2)
    tell(f"{what}: {time.monotonic() - start:.1f} s")
