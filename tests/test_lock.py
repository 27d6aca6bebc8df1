"""The lock fits pyproject.toml on every Python that it is for, and what is installed is locked."""

import importlib.metadata
import re
import runpy
import sys

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT
from tests.test_project import PROJECT

LOCK = runpy.run_path(str(ROOT / ".ci" / "lock.py"))
PYTHONS = ["3.11", "3.12"]
NAME = PROJECT["name"]


def pins(*files: str, python: str) -> dict[str, str]:
    """The version of each package that these files install on Linux."""
    result = {}
    for file in files:
        for pin in LOCK["read_pins"]((ROOT / file).read_text()):
            requirement = Requirement(pin.requirement)
            if requirement.marker is None or requirement.marker.evaluate(environment(python)):
                name = canonicalize_name(requirement.name)
                assert name not in result, f"{file} has two versions of {name} for Python {python}"
                (specifier,) = requirement.specifier
                assert specifier.operator == "==", pin.requirement
                result[name] = specifier.version
    return result


def environment(python: str, extra: str = "") -> dict[str, str]:
    return {"python_version": python, "python_full_version": f"{python}.9", "extra": extra}


def asked_for(extras: list[str], python: str) -> list[Requirement]:
    """What the project and these extras of it ask for, extras of extras included."""
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    requirements = [Requirement(line) for line in lines]
    mine = [x for x in requirements if x.name == NAME]
    inner = [extra for requirement in mine for extra in requirement.extras]
    others = [x for x in requirements if x.name != NAME]
    others = [x for x in others if x.marker is None or x.marker.evaluate(environment(python))]
    return others + (asked_for(inner, python) if inner else [])


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(
    ("file", "extras"),
    [("requirements.txt", list(LOCK["IMAGE_EXTRAS"])), ("requirements-dev.txt", ["dev"])],
)
def test_the_lock_fits_the_project(file, extras, python):
    locked = pins("requirements-torch.txt", file, python=python)
    for requirement in asked_for(extras, python):
        version = locked.get(canonicalize_name(requirement.name))
        assert version is not None, f"{file} lacks {requirement}: run `make lock`"
        assert requirement.specifier.contains(version), f"{requirement}, locked {version}: `make lock`"


@pytest.mark.parametrize("python", PYTHONS)
def test_the_image_has_the_versions_that_the_tests_ran_with(python):
    image, dev = (pins(file, python=python) for file in ("requirements.txt", "requirements-dev.txt"))
    assert image.items() <= dev.items()


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-dev.txt"])
def test_every_package_has_hashes_and_none_an_address(file):
    text = (ROOT / file).read_text()
    assert all(pin.hashes for pin in LOCK["read_pins"](text))
    assert not re.search(r"://|^-|^\s+-(?!-hash=sha256:[0-9a-f]{64})", text, re.MULTILINE)


def test_torch_and_what_it_alone_brings_stand_apart_without_a_build():
    names = {pin.name for pin in LOCK["read_pins"]((ROOT / "requirements-torch.txt").read_text())}
    assert {"torch", "networkx"} <= names
    for file in ("requirements.txt", "requirements-dev.txt"):
        assert names.isdisjoint(pins(file, python="3.11"))
        assert not any(LOCK["CUDA"].match(name) for name in pins(file, python="3.11"))


def test_what_is_installed_is_what_is_locked_and_all_of_it_is_needed():
    """Every package that one reaches from the project is there, in a version that fits and is locked."""
    python = "{}.{}".format(*sys.version_info)
    locked = pins("requirements-torch.txt", "requirements-dev.txt", python=python)
    seen: dict[str, set[str]] = {}
    queue = asked_for(["dev"], python)
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        fresh = {"", *requirement.extras} - seen.setdefault(name, set())
        if LOCK["CUDA"].match(name) or not fresh:
            continue
        seen[name] |= fresh
        installed = importlib.metadata.distribution(name)
        public = installed.version.partition("+")[0]
        assert requirement.specifier.contains(installed.version, prereleases=True), str(requirement)
        assert locked.get(name) == public, f"{name} {public} is installed: run `make`, or `make lock`"
        for line in installed.requires or []:
            inner = Requirement(line)
            markers = [environment(python, extra) for extra in fresh]
            if inner.marker is None or any(inner.marker.evaluate(marker) for marker in markers):
                queue.append(inner)
    unneeded = locked.keys() - seen.keys()
    assert not unneeded, f"{sorted(unneeded)}: nothing asks for them; run `make lock`"


def test_a_package_that_torch_alone_brings_goes_with_it_and_one_that_others_want_does_not():
    text = """networkx==3.6.1 \\
    --hash=sha256:1
    # via
    #   -c constraints.txt
    #   torch
numpy==2.0 \\
    --hash=sha256:2
    # via
    #   gan-training-service (pyproject.toml)
    #   torch
nvidia-cublas==13.0 ; sys_platform == 'linux' \\
    --hash=sha256:3
    # via torch
torch==2.13.0 \\
    --hash=sha256:4
    # via gan-training-service (pyproject.toml)
"""
    pins = LOCK["read_pins"](text)
    assert LOCK["torch_names"](pins) == {"torch", "networkx", "nvidia-cublas"}
    assert str(pins[1]) == "numpy==2.0 \\\n    --hash=sha256:2"
