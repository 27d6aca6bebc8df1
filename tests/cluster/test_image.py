"""The Dockerfile, as far as it can be checked without a daemon: linted, and its promises read off it."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from service.driver.provenance import COMMIT_FILE
from tests.conftest import ROOT
from tests.test_project import PROJECT

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


def test_it_installs_torch_first_and_then_the_lock_with_its_hashes():
    installs = [rest for name, rest in stages()["builder"] if name == "RUN" and "pip install" in rest]
    torch, locked = installs
    assert torch.endswith("--requirement requirements-torch.txt")
    assert locked.startswith("pip install --require-hashes --no-deps --requirement requirements.txt ")


def test_version_and_commit_are_told_to_the_image_by_make():
    runtime = stages()["runtime"]
    assert ("RUN", f'echo "$SERVICE_GIT_COMMIT" > {COMMIT_FILE}') in runtime
    command = subprocess.run(
        ["make", "--dry-run", "image", "IMAGE=example.com/gan", "DOCKER_FLAGS=--pull"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert f'--tag "example.com/gan:{PROJECT["version"]}" --pull' in command
    given = dict(re.findall(r'--build-arg (\w+)="(.*?)"', command))
    assert given == {
        "SERVICE_VERSION": PROJECT["version"],
        "SERVICE_GIT_COMMIT": "$(git rev-parse HEAD)",
    }
    for name in given:
        assert ("ARG", f"{name}=unknown") in runtime
