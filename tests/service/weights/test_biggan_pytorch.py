"""BigGAN-PyTorch's weights: with them our networks answer what that project's networks answered."""

import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

import models
from models import Stage
from service.errors import DataError
from service.weights.source import Given, read

RELATIVE = 1e-5
FAMILIES = {"biggan": "biggan_pytorch_64", "biggan-deep": "biggan_deep_pytorch_64"}


@pytest.fixture(params=FAMILIES)
def oracle(request: pytest.FixtureRequest) -> Path:
    """A file of weights with inputs and answers, from the folder that ORACLES names."""
    folder = os.environ.get("ORACLES")
    if not folder:
        pytest.skip("ORACLES names no folder of other projects' weights with their answers")
    return Path(folder) / f"{FAMILIES[request.param]}.safetensors"


def answers(given: Given, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What our networks answer with these weights."""
    generator, discriminator = models.build(given.family, **given.settings)
    generator.load_state_dict(given.generator)
    discriminator.load_state_dict(given.discriminator)
    stage = Stage(given.shape.resolution)
    with torch.no_grad():
        images = generator.eval()(inputs["in.z"], inputs["in.y"], stage)
        return {
            "out.images": images,
            "out.logits": discriminator.eval()(inputs["in.x"], inputs["in.y"], stage),
        }


def test_both_networks_answer_the_same_as_that_projects(oracle):
    inputs, given = safetensors.torch.load_file(oracle), read(str(oracle))
    for name, answer in answers(given, inputs).items():
        difference = (answer - inputs[name]).abs().max() / inputs[name].abs().max()
        assert difference < RELATIVE, f"{name} differ by {difference:.1e}"


def test_the_settings_are_read_off_the_shapes(oracle):
    with safe_open(oracle, "pt") as file:
        expected = {name: int(value) for name, value in file.metadata().items()}
    given = read(str(oracle))
    assert given.settings.items() >= expected.items()
    assert given.settings["channels"] == 3
    assert given.family == next(name for name, file in FAMILIES.items() if file == oracle.stem)


@pytest.mark.slow
def test_a_folder_of_pth_files_is_read_too_the_running_average_first(oracle, tmp_path):
    tensors, expected = safetensors.torch.load_file(oracle), read(str(oracle))
    for network in "GD":
        part = {k[2:]: v for k, v in tensors.items() if k.startswith(f"{network}.")}
        torch.save(part, tmp_path / f"{network}.pth")
    zeros = {k[2:]: torch.zeros_like(v) for k, v in tensors.items() if k.startswith("G.")}
    (tmp_path / "G.pth").rename(tmp_path / "G_ema.pth")
    torch.save(zeros, tmp_path / "G.pth")
    given = read(str(tmp_path))
    for mine, theirs in (
        (given.generator, expected.generator),
        (given.discriminator, expected.discriminator),
    ):
        assert all(torch.equal(mine[name], tensor) for name, tensor in theirs.items())
    alone = read(str(tmp_path / "G_ema.pth"))
    assert not alone.discriminator
    assert alone.generator.keys() == expected.generator.keys()


def test_what_is_missing_or_of_another_shape_is_named(oracle, tmp_path):
    tensors, file = safetensors.torch.load_file(oracle), tmp_path / "G.safetensors"
    name = "G.blocks.1.0.conv2.weight"
    safetensors.torch.save_file({k: v for k, v in tensors.items() if k != name}, file)
    with pytest.raises(DataError, match=rf"G\.safetensors: .*{name[2:]} is missing"):
        read(str(file))
    safetensors.torch.save_file(tensors | {name: torch.zeros(2, 3)}, file)
    with pytest.raises(DataError, match=rf"{name[2:]} is \[2, 3\], not \["):
        read(str(file))


def test_another_networks_file_is_refused_with_what_would_be_read(tmp_path):
    safetensors.torch.save_file({"conv.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match=r"neither an export.*no generator of that project.*run\.dir"):
        read(str(tmp_path / "other.safetensors"))
    for odd in ({"linear.bias": torch.zeros(())}, {"blocks.0.0.conv1.weight": torch.zeros(3, 0)}):
        names = {"linear.bias": torch.zeros(2), "blocks.0.0.conv1.weight": torch.zeros(3, 1)} | odd
        safetensors.torch.save_file(names, tmp_path / "odd.safetensors")
        with pytest.raises(DataError, match=r"odd\.safetensors: neither.*no generator of that project"):
            read(str(tmp_path / "odd.safetensors"))
    (tmp_path / "text.pth").write_text(json.dumps({}))
    with pytest.raises(DataError, match=r"text\.pth: damaged.*weights_only=True"):
        read(str(tmp_path / "text.pth"))


class Trap:
    """Runs something when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("trapped",)


def test_no_code_of_a_file_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"dense.weight": Trap()}, tmp_path / "G.pth")
    with pytest.raises(DataError, match=r"G\.pth: damaged, or holds more than tensors"):
        read(str(tmp_path / "G.pth"))
    assert not Path("trapped").exists()
