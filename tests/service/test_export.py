"""Exported generators draw, in onnxruntime and from their one file, what sampling would draw here."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
import yaml

import models
from models import Stage, stylegan
from service import export, pretrained
from service.engine.sampler import Sampler
from service.errors import ServiceError, UsageError
from service.generation import onnx
from service.run.best import load
from service.storage import open_storage
from tests.runs import FAMILIES, FINGERPRINT, NAMES, inputs, labels_of, make_run, ready

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("runs")
    return {family: make_run(folder / family, family) for family in FAMILIES}


@pytest.fixture(scope="module")
def exported(runs, tmp_path_factory) -> Callable[[str], Path]:
    """The folder that a family was exported to with no options."""
    folder = tmp_path_factory.mktemp("exported")

    def export_once(family: str) -> Path:
        if not (folder / family).exists():
            export.main([runs[family], str(folder / family)])
        return folder / family

    return export_once


@pytest.fixture
def progan(runs) -> str:
    return runs["progan"]


def in_onnxruntime(path: Path, drawn: dict[str, torch.Tensor]) -> torch.Tensor:
    session = onnxruntime.InferenceSession(path)
    (images,) = session.run(["images"], {name: tensor.numpy() for name, tensor in drawn.items()})
    return torch.from_numpy(images)


def steer(sampler: Sampler, drawn: dict[str, torch.Tensor], psi=1.0, cutoff=None, noise_seed=0):
    """Images [n, c, r, r] by the sampler's own generator, a StyleGAN's with one noise for all."""
    generator, stage = sampler.generator, sampler.stage
    if not isinstance(generator, stylegan.Generator):
        return generator(drawn["latents"], labels_of(drawn), stage)
    styles = generator.styles(drawn["latents"], labels_of(drawn), stage)
    noise = None if noise_seed is None else generator.draw_noise([noise_seed], stage)
    return generator.synthesise(generator.truncate(styles, psi, cutoff), stage, noise)


def test_every_family_is_covered():
    assert FAMILIES.keys() == models.FAMILIES.keys()


@pytest.mark.no_cover  # torch's export in Python takes five times as long when it is traced
@pytest.mark.parametrize("family", FAMILIES)
def test_both_files_draw_what_sampling_draws(family, runs, exported):
    sampler = ready(runs[family])
    assert sampler.stage.alpha == 0.5
    graph = exported(family) / "generator.onnx"
    generator, stage = pretrained.load(exported(family) / "generator.safetensors")
    assert stage == sampler.stage
    for count in (1, 5):
        drawn = inputs(family, count)
        expected = steer(sampler, drawn)
        assert expected.std() > 0.01
        images = in_onnxruntime(graph, drawn)
        torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)
        call = drawn["latents"], labels_of(drawn), stage
        assert torch.equal(generator(*call), sampler.generator(*call))


@pytest.mark.parametrize("family", ["dcgan", "progan"])
def test_the_graph_takes_labels_only_where_there_are_classes(family, exported):
    path = exported(family) / "generator.onnx"
    taken = {entry.name: entry for entry in onnxruntime.InferenceSession(path).get_inputs()}
    assert (taken["latents"].type, taken["latents"].shape) == ("tensor(float)", ["batch", 8])
    if family == "dcgan":
        assert (taken["labels"].type, taken["labels"].shape) == ("tensor(int64)", ["batch"])
    else:
        assert "labels" not in taken


@pytest.mark.parametrize("family", FAMILIES)
def test_the_graph_tells_nothing_of_the_machine_that_made_it(family, exported):
    assert b".py" not in (exported(family) / "generator.onnx").read_bytes()


@pytest.mark.parametrize("family", ["biggan", "mnist-pggan"])
def test_the_card_is_true_and_its_code_runs(family, runs, exported, monkeypatch):
    card = (exported(family) / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert {"gan", family, "safetensors", "onnx"} <= set(front["tags"])
    assert "license" not in front
    settings = json.loads(card.split("```json\n")[1].split("```")[0])
    assert settings.items() >= FAMILIES[family].items()
    total = sum(p.numel() for p in load(runs[family]).generator.parameters())
    for fact in (
        f"{total:,}",
        FINGERPRINT,
        "| `fid` | 12.25 |",
        "| images trained | 176 |",
        "alpha 0.5",
        *(["- 0: daisy\n- 1: oak\\*\n- 2: rose"] if family == "biggan" else []),
    ):
        assert fact in card
    header = pretrained.load_exported(exported(family) / "generator.safetensors")
    assert header.classes == (NAMES if family == "biggan" else ())
    monkeypatch.chdir(exported(family))
    names: dict[str, Any] = {}
    full = FAMILIES[family]["resolution"]
    for block in card.split("```python\n")[1:]:
        exec(block.split("```")[0], names)
        assert names["images"].shape == (8, 1, full, full)


@pytest.mark.parametrize(
    ("flags", "steering"),
    [
        (
            ["--psi", "0.5", "--cutoff", "2", "--noise-seed", "9"],
            {"psi": 0.5, "cutoff": 2, "noise_seed": 9},
        ),
        (["--no-noise"], {"noise_seed": None}),
    ],
)
def test_stylegans_options_are_fixed_in_the_graph(flags, steering, runs, tmp_path):
    export.main([runs["stylegan"], str(tmp_path), *flags])
    drawn = inputs("stylegan", 3)
    sampler = ready(runs["stylegan"])
    images = in_onnxruntime(tmp_path / "generator.onnx", drawn)
    torch.testing.assert_close(images, steer(sampler, drawn, **steering), atol=1e-4, rtol=0)
    assert (images - steer(sampler, drawn)).abs().max() > 1e-2


def test_a_lower_rung_stands_alone(progan, tmp_path, capsys):
    export.main([progan, str(tmp_path), "--resolution", "8"])
    printed = capsys.readouterr().out
    assert all(f"{tmp_path}/{key}: " in printed for key in export.KEYS)
    drawn = inputs("progan", 2)
    expected = ready(progan).generator(drawn["latents"], labels_of(drawn), Stage(8))
    images = in_onnxruntime(tmp_path / "generator.onnx", drawn)
    torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)
    assert pretrained.load(tmp_path / "generator.safetensors")[1] == Stage(8)


def test_the_last_weights_and_a_single_checkpoint_are_there_for_the_asking(progan, tmp_path):
    (checkpoint,) = (Path(progan) / "checkpoints").iterdir()
    export.main([str(checkpoint), str(tmp_path), "--weights", "generator", "--no-onnx"])
    drawn = inputs("progan", 2)
    generator, stage = pretrained.load(tmp_path / "generator.safetensors")
    call = drawn["latents"], labels_of(drawn), stage
    assert torch.equal(generator(*call), ready(progan, "generator").generator(*call))
    assert not torch.equal(generator(*call), ready(progan).generator(*call))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "generator.safetensors"]
    assert "onnx" not in (tmp_path / "README.md").read_text()


def test_a_destination_with_files_is_refused_until_forced(progan, tmp_path):
    (tmp_path / "generator.onnx").write_bytes(b"of an earlier export")
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(UsageError, match=r"not empty, it holds generator\.onnx and 1 more.*--force"):
        export.main([progan, str(tmp_path)])
    assert len([*tmp_path.iterdir()]) == 2
    export.main([progan, str(tmp_path), "--no-onnx", "--force"])
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["README.md", "generator.safetensors", "mine.txt"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--resolution", "12"], r"--resolution 12: .*choose one of 8, 16$"),
        (["--resolution", "32"], r"--resolution 32: .*choose one of 8, 16$"),
        (["--psi", "0.7"], "--psi: progan has no styles"),
        (["--no-noise"], "--no-noise: progan has no styles"),
        (["--psi", "nan"], "--psi nan: give a number"),
        (
            ["--psi", "0.7", "--no-onnx"],
            r"--psi: applies to generator\.onnx, which --no-onnx leaves out",
        ),
        (["--noise-seed", "-1"], "--noise-seed -1: give a whole number from 0 to"),
        (["--noise-seed", "1", "--no-noise"], "--noise-seed and --no-noise: give only one of them"),
        (["--standing-batches", "0"], "--standing-batches 0: give a whole number from 1"),
        (["--weights", "last"], "--weights last: choose ema or generator"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_written(flags, words, progan, tmp_path):
    with pytest.raises(UsageError, match=words):
        export.main([progan, str(tmp_path / "new"), *flags])
    assert not (tmp_path / "new").exists()


def test_a_cutoff_beyond_the_layers_is_refused(runs, tmp_path):
    with pytest.raises(UsageError, match="--cutoff 7: there are 6 layers at 16 px; give 0 to 6"):
        export.main([runs["stylegan"], str(tmp_path), "--cutoff", "7"])


def test_a_rung_that_was_not_trained_yet_is_refused(tmp_path):
    run = make_run(tmp_path / "run", "progan", clock=64)
    with pytest.raises(UsageError, match=r"--resolution 16: .*choose one of 8$"):
        export.main([run, str(tmp_path / "new"), "--resolution", "16"])


def test_where_there_is_no_checkpoint_is_said(tmp_path):
    with pytest.raises(UsageError, match=f"{tmp_path}/run: no committed checkpoint there"):
        export.main([f"{tmp_path}/run", f"{tmp_path}/new"])


def test_a_graph_that_draws_otherwise_is_not_written(progan, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, "TOLERANCE", 1e-12)
    with pytest.raises(
        ServiceError, match=r"differs from torch by [\d.]+e-0\d, more than 1e-12: nothing is written"
    ):
        export.main([progan, str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()


def test_packages_that_are_missing_are_named_with_the_remedy(progan, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UsageError, match=r"needs onnxscript.*gan-training-service\[export\]"):
        export.main([progan, str(tmp_path)])


def test_run_and_export_may_lie_in_s3(s3, tmp_path):
    run = make_run(f"{s3}/exported-run", "dcgan")
    export.main([run, f"{s3}/exported"])
    stored = open_storage(f"{s3}/exported")
    assert stored.sizes().keys() == set(export.KEYS)
    for key in export.KEYS:
        (tmp_path / key).write_bytes(stored.get(key))
    drawn = inputs("dcgan", 4)
    generator, stage = pretrained.load(tmp_path / "generator.safetensors")
    expected = generator(drawn["latents"], labels_of(drawn), stage)
    images = in_onnxruntime(tmp_path / "generator.onnx", drawn)
    torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)
    with pytest.raises(UsageError, match="not empty"):
        export.main([run, f"{s3}/exported"])
