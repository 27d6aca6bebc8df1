"""Which code a run was made with: told by its files, wherever they lie."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from service.driver.provenance import code_digest, git_commit
from tests.conftest import ROOT

TELL = "import json; from service.driver.provenance import provenance; print(json.dumps(provenance()))"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The packages without git, as Ray unpacks them for a job."""
    for package in ("models", "service"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def told(folder: Path) -> dict[str, str]:
    command = [sys.executable, "-c", TELL]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_the_digest_is_that_of_all_files_and_their_names(copy):
    lines = []
    for path in sorted([*copy.rglob("*.py"), *copy.rglob("*.yaml")]):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        lines.append(f"{path.relative_to(copy)} {content}\n")
    assert len(lines) > 100
    assert code_digest() == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert told(copy) == {"mlflow.source.git.commit": "unknown", "code.sha256": code_digest()}


def test_a_changed_line_is_other_code(copy):
    with (copy / "service" / "train.py").open("a") as file:
        file.write("# changed\n")
    assert told(copy)["code.sha256"] != code_digest()


def test_an_image_knows_its_commit_and_code_that_is_submitted_does_not(copy, tmp_path_factory):
    (copy / "COMMIT").write_text("0123abc\n")
    assert told(copy)["mlflow.source.git.commit"] == "0123abc"
    submitted = tmp_path_factory.mktemp("job")
    for package in ("models", "service"):
        shutil.copytree(ROOT / package, submitted / package)
    assert told(submitted)["mlflow.source.git.commit"] == "unknown"


def test_in_a_clone_git_knows_it():
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    assert git_commit() == (done.stdout.strip() or "unknown")
