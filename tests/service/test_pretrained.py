"""An exported generator from its one file: without the rest of the service, and what is no such file."""

import json
import subprocess
import sys
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

from models import Stage
from service import export, pretrained
from service.errors import DataError
from tests.conftest import ROOT
from tests.runs import FAMILIES, inputs, labels_of, make_run, ready


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("runs")
    return {family: make_run(folder / family, family) for family in ("progan", "biggan")}


@pytest.fixture
def progan(runs) -> str:
    return runs["progan"]


@pytest.mark.slow
def test_loading_imports_nothing_of_the_cluster_and_draws_nothing_at_random(progan, tmp_path):
    export.main([progan, str(tmp_path), "--no-onnx"])
    script = f"""
import sys, torch
before = torch.random.get_rng_state()
from service.pretrained import load
generator, stage = load({str(tmp_path / "generator.safetensors")!r})
assert torch.equal(before, torch.random.get_rng_state())
print(*generator(torch.randn(8, 8), torch.zeros(8, dtype=torch.int64), stage).shape)
print(sorted({{"ray", "mlflow", "pydantic", "boto3"}} & sys.modules.keys()))
"""
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout.splitlines() == ["8 1 16 16", "[]"], ran.stderr


def test_a_channels_last_generator_comes_back_bit_for_bit(runs, tmp_path):
    sampler = ready(runs["biggan"])
    drawn = inputs("biggan", 3)
    expected = sampler.generator(drawn["latents"], labels_of(drawn), sampler.stage)
    sampler.generator.to(memory_format=torch.channels_last)
    path = tmp_path / "generator.safetensors"
    path.write_bytes(pretrained.to_bytes(sampler.generator, "biggan", sampler.shape, sampler.stage))
    generator, stage = pretrained.load(path)
    assert torch.equal(generator(drawn["latents"], labels_of(drawn), stage), expected)


def tensors_alone() -> bytes:
    return safetensors.torch.save({"weight": torch.zeros(2)})


def another_header(**changes: Any) -> bytes:
    header = {
        "version": 2,
        "family": "progan",
        "settings": FAMILIES["progan"],
        "resolution": 16,
        "alpha": 1.0,
    }
    return with_header(json.dumps(header | changes))


def with_header(text: str) -> bytes:
    return safetensors.torch.save({"weight": torch.zeros(2)}, {pretrained.HEADER: text})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a safetensors file, or damaged"),
        (b"PK\x03\x04" + bytes(64), "not a safetensors file, or damaged"),
        (tensors_alone(), "not one that this service exported"),
        (another_header(alpha="all"), "does not describe a generator .alpha: 'all' has the wrong type"),
        (another_header(alpha=True), "alpha: True has the wrong type"),
        (another_header(resolution="16"), "resolution: '16' has the wrong type"),
        (another_header(resolution=10**30), "do not fit its settings"),
        (another_header(settings=[]), r"settings: \[\] has the wrong type"),
        (another_header(settings={"width": [8]}), r"settings\.width: \[8\] is not a network setting"),
        (another_header(settings={"width": 10**40}), r"settings\.width: 10+ is not a network setting"),
        (another_header(settings={"depth": 8}), "do not fit its settings .depth 8: progan has no"),
        (
            another_header(family="stylegan", settings={"resolution": 16, "mapping_layers": 10**9}),
            "mapping_layers is 1000000000: give 1 to 64",
        ),
        (another_header(version=3), "version: 3, but this service reads version 2"),
        (another_header(version="2"), "version: '2', but this service reads version 2"),
        (another_header(more=1), "does not describe a generator .*'more'"),
        # as exported before headers had versions
        (
            with_header('{"family": "progan", "settings": {}, "resolution": 16, "alpha": 1.0}'),
            "version: None, but this service reads version 2.; export it again",
        ),
        (with_header("{"), "does not describe a generator"),
        (with_header("[]"), "does not describe a generator"),
        (with_header("null"), "does not describe a generator"),
        (with_header('{"version": 2}'), "does not describe a generator"),
        (with_header("[" * 100_000), "does not describe a generator"),
        (with_header(" " * (1 << 20) + "{}"), "1048578 characters, over the limit of 1048576"),
        (another_header(family="vae"), "family 'vae' is unknown"),
        (another_header(settings={"resolution": 17}), "do not fit its settings"),
        (another_header(), "do not fit its settings"),
    ],
)
def test_a_foreign_file_is_refused_in_words(content, words, tmp_path):
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        pretrained.load(path)


def test_settings_and_rung_in_the_header_are_checked_against_the_ladder(runs, tmp_path):
    sampler = ready(runs["progan"])
    path = tmp_path / "generator.safetensors"
    path.write_bytes(pretrained.to_bytes(sampler.generator, "progan", sampler.shape, Stage(64)))
    with pytest.raises(DataError, match="no rung of 64 px"):
        pretrained.load(path)


@pytest.mark.parametrize("alpha", [1.5, -0.5, float("nan"), float("inf")])
def test_a_share_of_the_rung_beyond_its_bounds_is_refused(progan, tmp_path, alpha):
    sampler = ready(progan)
    path = tmp_path / "generator.safetensors"
    path.write_bytes(pretrained.to_bytes(sampler.generator, "progan", sampler.shape, Stage(16)))
    with safetensors.safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[pretrained.HEADER])
    tensors = safetensors.torch.load_file(path)
    metadata = {pretrained.HEADER: json.dumps(header | {"alpha": alpha})}
    path.write_bytes(safetensors.torch.save(tensors, metadata))
    with pytest.raises(DataError, match=rf"alpha is {alpha}; give a number in \[0, 1\]"):
        pretrained.load(path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_of_another_dtype_are_refused(progan, tmp_path, dtype):
    sampler = ready(progan)
    path = tmp_path / "generator.safetensors"
    path.write_bytes(pretrained.to_bytes(sampler.generator, "progan", sampler.shape, Stage(16)))
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = {name: tensor.to(dtype) for name, tensor in safetensors.torch.load_file(path).items()}
    path.write_bytes(safetensors.torch.save(tensors, metadata))
    with pytest.raises(DataError, match=rf"a {dtype} on cpu, not a torch\.float32 on the CPU"):
        pretrained.load(path)
