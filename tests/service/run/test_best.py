"""Checkpoints whose files are whole, but hold what the service never wrote: refused in words."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from service.errors import DataError
from service.run.best import load
from tests.runs import make_run, sealed


@pytest.fixture
def folder(tmp_path) -> Path:
    """The folder of a run's only checkpoint."""
    make_run(tmp_path / "run", "dcgan")
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    return checkpoint


def change_weights(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Other weights, with the checksum that belongs to them."""
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    data = buffer.getvalue()
    (folder / "ema.pt").write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["files"]["ema.pt"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_bytes(sealed(manifest))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"dtype": torch.float64}, r"a torch\.float64 on cpu, not a torch\.float32 on the CPU"),
        ({"device": "meta"}, r"holds more than tensors \(it names torch\._utils _rebuild_meta"),
    ],
)
def test_weights_of_another_dtype_or_device_are_refused(folder, other, words):
    weights = torch.load(folder / "ema.pt", weights_only=True)
    change_weights(folder, {name: tensor.to(**other) for name, tensor in weights.items()})
    with pytest.raises(DataError, match=words):
        load(str(folder.parents[1]))


@pytest.mark.parametrize(
    ("section", "changes", "words"),
    [
        ("model", {"width": 10**30}, r"\(.*\)$"),
        ("model", {"width": "wide"}, r"\(model\.width: Input should be a valid integer"),
        ("run", {"dir": 7}, r"\(run\.dir: Input should be a valid string\)$"),
    ],
)
def test_settings_that_do_not_fit_are_named_in_one_line(
    folder, section: str, changes: dict[str, Any], words: str
):
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["config"][section] |= changes
    (folder / "manifest.json").write_bytes(sealed(manifest))
    with pytest.raises(DataError, match="damaged, or made by another version") as error:
        load(str(folder.parents[1]))
    assert "\n" not in str(error.value)
    error.match(words)
