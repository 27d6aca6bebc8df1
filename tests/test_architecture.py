"""The arrows of the house hold, and the linter sees one that is broken on purpose."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = ("benchmarks", "cluster", "models", "service")


def lint(folder: Path) -> tuple[int, str]:
    """Exit code and output of the import linter on the packages in a folder."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return result.returncode, result.stdout + result.stderr


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the code that a test may break."""
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_every_import_points_down_the_house(house):
    code, output = lint(house)
    assert code == 0, output


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("service/engine/step.py", "from service.run import checkpoint", "Arrows point down the house"),
        ("service/data/order.py", "from service.metrics import kid", "Arrows point down the house"),
        ("service/storage/base.py", "import service.storage.s3", "No circle anywhere"),
        ("service/collapse/state.py", "import service.collapse.detector", "No circle anywhere"),
        ("service/engine/curriculum.py", "import ray", "Rooms that know nothing of Ray"),
        ("service/training/respond.py", "import ray", "Only rooms where processes meet import Ray"),
        ("models/losses.py", "import numpy", "The networks import torch alone"),
        ("models/growth.py", "import service.errors", "Measuring stands on the cluster"),
        ("service/pretrained.py", "import pydantic", "An exported generator needs torch"),
        ("service/attic.py", "import json", "every room has its floor"),
    ],
)
def test_a_broken_arrow_is_seen(house, file, line, contract):
    with open(house / file, "a") as code:
        code.write(f"\n{line}\n")
    code, output = lint(house)
    assert code != 0
    assert re.search(rf"{contract}.* BROKEN", output), output


def test_one_file_alone_knows_of_processes_that_compute_together():
    needle = re.compile(r"torch\.distributed|nn\.parallel|all_reduce|DistributedDataParallel")
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    naming = {str(f.relative_to(ROOT)) for f in files if needle.search(f.read_text())}
    measuring = {"benchmarks/gpu.py", "benchmarks/scaling.py"}
    assert naming - measuring == {"service/engine/distributed.py"}


def test_no_family_is_asked_for_by_its_class():
    """What a family can do, its configuration says: a new one needs no edit outside `models`."""
    needle = re.compile(r"isinstance\([^)]*(?:Generator|Discriminator)\)|from models import .*stylegan")
    for file in (ROOT / "service").rglob("*.py"):
        assert not needle.search(file.read_text()), file
