"""`make gpu`: it says where it checks nothing, it needs little, and what it trains trains."""

import json
import subprocess
import sys

import pytest
import torch
import yaml

from benchmarks import gpu, gpu_service
from models.losses import gradient_penalty
from service.config import Config
from tests.conftest import ROOT, run_command


@pytest.mark.slow
def test_without_a_gpu_it_says_that_nothing_was_checked():
    code, output = run_command("benchmarks.gpu", CUDA_VISIBLE_DEVICES="")
    assert (code, "NOTHING WAS CHECKED" in output) == (3, True), output


@pytest.mark.slow
def test_nor_does_the_service_without_one():
    code, output = run_command("benchmarks.gpu_service", CUDA_VISIBLE_DEVICES="")
    assert (code, "NOTHING WAS CHECKED" in output) == (3, True), output


@pytest.mark.parametrize("workers", [1, 2])
def test_the_services_runs_are_valid_configurations(tmp_path, workers):
    files = gpu_service.files(tmp_path, workers)
    for file in files.values():
        config = Config(**yaml.safe_load(file.read_text()))
        assert config.worker_counts == [workers]
        assert config.scale.gpu


@pytest.mark.slow
def test_it_needs_neither_the_cluster_nor_its_clients():
    script = "import benchmarks.gpu, json, sys; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    roots = {name.partition(".")[0] for name in json.loads(result.stdout)}
    assert roots.isdisjoint({"ray", "mlflow", "boto3", "webdataset", "sklearn"})


@pytest.mark.slow
@pytest.mark.parametrize("family", gpu.SMALL)
def test_its_small_trainings_train(family):
    losses = gpu.losses(gpu.small(family), torch.device("cpu"))
    assert losses.shape == (gpu.SMALL_CYCLES, 4)
    assert losses.isfinite().all()
    assert len(losses[:, 0].unique()) == gpu.SMALL_CYCLES


def test_operations_are_counted_through_gradients_of_gradients():
    """A matrix product [n, i] × [i, o] is 2·n·i·o operations; its gradients are products, too."""
    n, size = 4, 8
    weight = torch.randn(size, size, requires_grad=True)
    images = torch.randn(n, size)
    with gpu.Flops() as flops:
        shares = torch.rand(n)
        penalty = gradient_penalty(lambda x: (x @ weight).sum(1), images, images + 1, shares, 1.0)
    forward_and_gradient = 2 * 2 * n * size * size
    assert flops.total == forward_and_gradient
    with gpu.Flops() as flops:
        penalty.backward()
    assert flops.total == 2 * n * size * size  # the gradient's own gradient, of the weight


def test_the_rung_of_a_preset_is_its_only_one():
    config = gpu.one_rung("progan1024", 4, 512)
    assert (config.phases[0].resolution, config.phases[0].batch) == (4, 512)
    assert config.scale.workers == 1


def test_the_summary_takes_the_worst_and_leaves_out_what_was_not_measured():
    rungs = {f"{rung}.ratio": ratio for rung, ratio in zip(gpu.RUNGS, (9, 4, 2), strict=True)}
    times = {"replay.a.host_ms": 1.0, "replay.a.cycle_ms": 4.0, "replay.a.busy": 0.9}
    times |= {"replay.b.host_ms": 2.0, "replay.b.cycle_ms": 4.0, "replay.b.busy": 0.99}
    lines = rungs | times | {"replay.dcgan.fp32.apart": 0.0}
    assert gpu.summary(lines) == {"low_rung_ratio": 2, "device_busy": 0.9, "host_share": 0.5}
    assert gpu.summary({}) == {}
