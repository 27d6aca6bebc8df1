"""The same command as a submitted job: shards and checkpoints in S3, curves on MLflow's server."""

import json
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path

import mlflow
import pytest

from service import pack
from service.run import checkpoint, commits
from service.storage import open_storage
from tests.conftest import ROOT, assert_no_secrets, need_package

IMAGES = 2560


@pytest.fixture(scope="module")
def job(stack, tmp_path_factory):
    """A job submitted to the stack's Ray, its output, and its MLflow run."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in stack.environment.items():
            patch.setenv(name, value)
        pack.main(["digits", "s3://gan/job/data", "--channels", "gray"])
        command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--working-dir", "."]
        command += ["--", "python", "-m", "service.train", "--preset", "digits"]
        command += ["--data.url", "s3://gan/job/data", "--run.dir", "s3://gan/job/digits-run"]
        command += ["--tracking.uri", stack.environment["MLFLOW_TRACKING_URI"]]
        command += ["--run.images", str(IMAGES), "--tracking.every_images", "640"]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=400
        )
        output = done.stdout + done.stderr
        assert done.returncode == 0, output
        client = mlflow.MlflowClient(stack.environment["MLFLOW_TRACKING_URI"])
        experiment = client.get_experiment_by_name("gan-training")
        (run,) = client.search_runs(
            [experiment.experiment_id], "tags.`run.dir` = 's3://gan/job/digits-run'"
        )
        yield output, client, run


def test_it_trains_and_checkpoints_into_s3(job, s3):
    storage = open_storage(f"{s3}/job/digits-run")
    committed, _ = commits.find(storage)
    assert committed[-1].clock == IMAGES
    tensors, manifest = checkpoint.read(storage, committed[-1])
    assert set(tensors) == {
        "generator", "discriminator", "ema", "optimizer_g", "optimizer_d", "spectra"
    }  # fmt: skip
    assert manifest.model_dump()["config"]["data"]["url"] == "s3://gan/job/data"
    assert storage.sizes("pictures/")


def test_mlflow_shows_configuration_curves_and_grids(job):
    _, client, run = job
    assert run.info.status == "FINISHED"
    assert run.data.params["data.url"] == "s3://gan/job/data"
    steps = [m.step for m in client.get_metric_history(run.info.run_id, "loss_d")]
    assert sorted(steps) == list(range(640, IMAGES + 1, 640))
    names = [f.path for f in client.list_artifacts(run.info.run_id, "images")]
    assert any(name.endswith(".png") for name in names)


def test_the_stacks_prometheus_scraped_it_without_being_told(job, stack):
    need_package("/usr/bin/prometheus", "prometheus")
    query = urllib.parse.urlencode({"query": 'last_over_time(gan_images{run="digits-run"}[1h])'})
    address = f"http://127.0.0.1:{stack.processes['prometheus'].port}/api/v1/query?{query}"
    with urllib.request.urlopen(address, timeout=10) as answer:
        (series,) = json.load(answer)["data"]["result"]
    assert 0 < float(series["value"][1]) <= IMAGES


def test_credentials_appear_nowhere(job, stack):
    output, client, run = job
    config = client.download_artifacts(run.info.run_id, "config.yaml")
    seen = {"the job's output": output, "config.yaml": Path(config).read_text()}
    assert_no_secrets(stack, seen | {"parameters": str(run.data.params), "tags": str(run.data.tags)})
