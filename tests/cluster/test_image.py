"""The Dockerfile, as far as it can be checked without a daemon: linted, and its promises read off it."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.requirements import requirements
from tests.conftest import ROOT

DOCKERFILE = ROOT / "cluster" / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """Each instruction with its arguments, comments left out and continued lines joined."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [
        (name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines()) if name
    ]


def stages() -> dict[str, list[tuple[str, str]]]:
    by_name: dict[str, list[tuple[str, str]]] = {}
    for name, rest in instructions():
        if name == "FROM":
            by_name[rest.partition(" AS ")[2]] = []
        if by_name:
            list(by_name.values())[-1].append((name, rest))
    return by_name


def test_hadolint_has_nothing_to_say():
    linter = shutil.which("hadolint") or str(Path(sys.executable).with_name("hadolint"))
    done = subprocess.run([linter, "--format", "json", DOCKERFILE], capture_output=True, text=True)
    findings = [f"{f['line']}: {f['code']} {f['message']}" for f in json.loads(done.stdout)]
    assert (findings, done.returncode) == ([], 0)


def test_the_image_runs_as_another_than_root_in_app():
    *_, runtime = stages().values()
    assert runtime[0] == ("FROM", "python AS runtime")
    assert [rest for name, rest in runtime if name == "USER"] == ["1000:1000"]
    assert [rest for name, rest in runtime if name == "WORKDIR"] == ["/app"]
    assert ("COPY", "--from=builder /opt/venv /opt/venv") in runtime


def test_bases_are_pinned_and_can_be_chosen():
    (base,) = [rest for name, rest in instructions() if name == "ARG" and rest.startswith("BASE=")]
    assert re.fullmatch(r"BASE=python:3\.\d+\.\d+-slim-\w+", base)
    assert [rest.split()[0] for name, rest in instructions() if name == "FROM"] == [
        "${BASE}",
        "python",
        "python",
    ]
    assert "latest" not in DOCKERFILE.read_text()


def test_all_that_is_copied_exists_and_reaches_the_builder():
    kept = [x[1:] for x in (ROOT / ".dockerignore").read_text().splitlines() if x.startswith("!")]
    for name, rest in instructions():
        if name == "COPY" and not rest.startswith("--from="):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert any(source == path or source.startswith(f"{path}/") for path in kept), source
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines()


def test_nothing_secret_is_an_argument_or_in_the_environment():
    names = " ".join(rest for name, rest in instructions() if name in ("ARG", "ENV"))
    assert not re.search(r"(?i)secret|password|access_key|auth_token", names)


def test_it_installs_what_the_makefile_does_and_what_the_project_asks_for():
    pins = re.findall(r'"(ray\[[^"]+|mlflow==[^"]+)"', (ROOT / "Makefile").read_text())
    text = DOCKERFILE.read_text()
    assert len(pins) == 2
    assert all(f'"{pin}"' in text for pin in pins)
    assert re.findall(r"TORCH \?= (\S+)", (ROOT / "Makefile").read_text()) == re.findall(
        r"TORCH=(\S+)", text
    )
    listed = subprocess.run(
        [sys.executable, "cluster/requirements.py", "pyproject.toml", "export", "metrics"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert {"webdataset>=1.0", "onnx>=1.18"} <= set(listed)
    assert not any("gan-training-service" in line for line in listed)
    with pytest.raises(KeyError, match="nothing"):
        requirements(ROOT / "pyproject.toml", ["nothing"])


def test_the_commit_of_the_code_is_told_to_the_service():
    runtime = stages()["runtime"]
    assert ("ARG", "SERVICE_GIT_COMMIT=unknown") in runtime
    assert any(
        name == "ENV" and "SERVICE_GIT_COMMIT=$SERVICE_GIT_COMMIT" in rest for name, rest in runtime
    )
