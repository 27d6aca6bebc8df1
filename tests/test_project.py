"""One version number, and the files that every public project has."""

import runpy
import tomllib

import pytest
import yaml

from tests.conftest import ROOT

VERSION = runpy.run_path(str(ROOT / ".ci" / "version.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_chart_has_the_projects_version():
    chart = yaml.safe_load((ROOT / "helm/gan-training/Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == PROJECT["version"], "run `make version`"


@pytest.mark.parametrize("path", VERSION["PLACES"])
def test_a_new_version_reaches_every_file_that_spells_it_out(path):
    text = (ROOT / path).read_text()
    pattern = VERSION["PLACES"][path]
    assert VERSION["with_version"](text, pattern, PROJECT["version"]) == text, "run `make version`"
    renewed = VERSION["with_version"](text, pattern, "12.0.0-rc.1")
    assert PROJECT["version"] not in renewed
    assert renewed.replace("12.0.0-rc.1", PROJECT["version"]) == text


@pytest.mark.parametrize("version", ["", "1.2", "0.2.0rc1", "v1.2.3", "1.2.3-rc1"])
def test_a_version_that_python_or_the_chart_refuses_is_not_spread(version, monkeypatch, tmp_path):
    (tmp_path / "pyproject.toml").write_text(f'[project]\nversion = "{version}"\n')
    monkeypatch.setitem(VERSION["project_version"].__globals__, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match=r"write it as 1\.2\.3"):
        VERSION["project_version"]()


def test_the_licence_is_named_and_there():
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()


@pytest.mark.parametrize("package", ["service", "models"])
def test_types_are_for_users_of_the_packages_too(package):
    assert (ROOT / package / "py.typed").exists()


def test_the_workflow_and_the_hooks_run_what_make_and_ci_run():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    steps = [step.get("run", "") for step in workflow["jobs"]["ci"]["steps"]]
    assert any(".ci/run" in step for step in steps)
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert {repo["repo"] for repo in hooks} == {"local"}  # no network
    entries = " ".join(hook["entry"] for repo in hooks for hook in repo["hooks"])
    makefile = (ROOT / "Makefile").read_text()
    lint = makefile[makefile.index("\nlint:") :].partition("\n\n")[0]
    for tool in ("ruff check", "ruff format", "mypy", "lint-imports"):
        assert tool in lint
        assert tool in entries
