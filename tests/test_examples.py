"""The examples do what they say: train from Python, draw from an export."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from cluster.local import Stack
from service import export
from tests.conftest import ROOT
from tests.runs import FAMILIES, make_run

TINY = """
import sys
sys.path.insert(0, "examples")
from train_from_python import main
main(sys.argv[1], sys.argv[2], run={"images": 128},
     model={"resolution": 16, "attention": 8, "width": 4, "latents": 12, "embedding": 8},
     phases=[{"resolution": 16, "hold_images": 128, "batch": 16}],
     scale={"workers": 1}, checkpoint={"every_images": 64}, data={"lanes": 8, "window": 16},
     tracking={"every_images": 64, "pictures_every_images": 128}, evaluation={"every_images": None})
"""


def run(*command: str, **environment: str) -> str:
    """The output of a Python process in the repository."""
    result = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_a_picture_is_drawn_from_an_export(tmp_path: Path):
    address = make_run(tmp_path / "run", "biggan")
    export.main([address, str(tmp_path / "exported"), "--no-onnx", "--standing-batches", "1"])
    out = tmp_path / "drawn.png"
    output = run(
        "examples/draw_from_export.py", str(tmp_path / "exported" / "generator.safetensors"), str(out)
    )
    side = FAMILIES["biggan"]["resolution"]
    assert Image.open(out).size == (3 * side, 8 * side)  # a class a column
    assert "8 × 3 images" in output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: weights, out"),
        (["weights", "drawn.png", "more"], "unrecognized arguments: more"),
        (["weights", "drawn"], "drawn: no picture's name"),
        (["weights", "drawn.png"], "weights: not a safetensors file"),
    ],
)
def test_wrong_arguments_end_in_a_line_of_usage(arguments, words):
    command = [sys.executable, "examples/draw_from_export.py", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_training_from_python_ends_with_its_checkpoint(digits: Path, stack: Stack, tmp_path: Path):
    output = run("-c", TINY, str(digits), str(tmp_path / "run"), **stack.environment)
    assert "biggan at 16 px, clock 128" in output
