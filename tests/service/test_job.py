"""The same command as a submitted job: shards and checkpoints in S3, curves on MLflow's server."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import numpy as np
import pytest

from service import pack, sample
from service.driver.provenance import code_digest
from service.run import checkpoint, commits
from service.storage import open_storage
from tests.conftest import ROOT, assert_no_secrets, need_package, run_command
from tests.live import ask_prometheus

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
        command += ["--evaluation.every_images", "1280", "--evaluation.images", "64"]
        command += ["--evaluation.scores", '["swd"]', "--evaluation.best", "swd"]
        command += ["--checkpoint.every_images", "1280", "--scale.peak_flops", "1e12"]
        command += ["--data.cache_dir", str(tmp_path_factory.mktemp("cache"))]
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
    assert run.data.tags["code.sha256"] == code_digest()
    assert run.data.tags["mlflow.source.git.commit"] == "unknown"  # Ray leaves .git out
    steps = [m.step for m in client.get_metric_history(run.info.run_id, "loss_d")]
    assert sorted(steps) == list(range(640, IMAGES + 1, 640))
    names = [f.path for f in client.list_artifacts(run.info.run_id, "images")]
    assert any(name.endswith(".png") for name in names)


@pytest.fixture
def prometheus(stack):
    """The stack, of which Prometheus runs."""
    need_package("/usr/bin/prometheus", "prometheus")
    return stack


def test_the_stacks_prometheus_scraped_it_without_being_told(job, prometheus):
    query = 'last_over_time(gan_images{run="digits-run"}[1h])'
    (series,) = ask_prometheus(prometheus, "query", query=query)["result"]
    assert 0 < float(series["value"][1]) <= IMAGES


def test_prometheus_saw_it_end_in_order(job, prometheus):
    for metric, last in (("gan_up", "0"), ("gan_failed", "0")):
        query = f'last_over_time({metric}{{run="digits-run"}}[1h])'
        found = ask_prometheus(prometheus, "query", query=query)
        assert [each["value"][1] for each in found["result"]] == [last]


def test_every_panel_of_the_dashboard_has_data(job, prometheus):
    board = json.loads((ROOT / "helm/gan-training/files/dashboard.json").read_text())
    targets = [target for panel in board["panels"] for target in panel.get("targets", ())]
    now = time.time()
    times = {"start": now - 600, "end": now, "step": "1s"}
    # a run in S3 has no disk to fill, and one on CPUs no GPU
    elsewhere = {t["expr"] for t in targets if re.search("run_dir_free|gan_gpu_", t["expr"])}
    assert len(targets) > 30
    assert len(elsewhere) == 5
    for query in {target["expr"] for target in targets} - elsewhere:
        filled = query.replace("$__rate_interval", "1m").replace("$run", "digits-run")
        found = ask_prometheus(prometheus, "query_range", query=filled, **times)["result"]
        assert any(value != "NaN" for each in found for _, value in each["values"]), query


def test_images_that_ray_workers_draw_are_those_drawn_here(job, stack, tmp_path):
    files = [str(tmp_path / f"{where}.npz") for where in ("here", "workers")]
    share = ["--start", "100", "--count", "700", "--standing-batches", "2"]
    here, there = (["s3://gan/job/digits-run", "images", "--out", file, *share] for file in files)
    sample.main(here)
    code, output = run_command("service.sample", *there, "--workers", "2", **stack.environment)
    assert code == 0, output
    drawn = [dict(np.load(file)) for file in files]
    assert drawn[0]["images"].shape == (700, 8, 8, 1)
    for name in ("images", "labels"):
        assert np.array_equal(drawn[0][name], drawn[1][name])


def test_credentials_appear_nowhere(job, stack):
    output, client, run = job
    config = client.download_artifacts(run.info.run_id, "config.yaml")
    seen = {"the job's output": output, "config.yaml": Path(config).read_text()}
    assert_no_secrets(stack, seen | {"parameters": str(run.data.params), "tags": str(run.data.tags)})
