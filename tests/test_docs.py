"""What the documentation names is there: pages, headings, files, commands, flags, settings."""

import importlib
import importlib.util
import re
from pathlib import Path

import pytest

from service.config import Config
from service.config.describe import describe
from service.config.reference import page
from tests.conftest import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "helm").rglob("README.md")),
]
SETTINGS = describe(Config)
SECTIONS = "|".join(Config.model_fields)
# A placeholder, and a file's name.
NO_SETTINGS = {"section.key", "run.json"}
# What git keeps; what a run or a tool makes, such as runs/ and data/, is none of it.
FOLDERS = "benchmarks|cluster|docs|examples|helm|models|service|tests"

COMMANDS = [
    f"{folder}.{file.stem}".replace("/", ".")
    for folder in ("service", "service/config", "cluster", "benchmarks")
    for file in sorted((ROOT / folder).glob("*.py"))
    if "run_command(main)" in file.read_text()
]

each_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def test_the_configuration_page_is_current():
    written = (ROOT / "docs" / "configuration.md").read_text()
    assert written == page(), "docs/configuration.md is not what the configuration says: make docs"


@each_page
def test_links_lead_to_files_and_headings(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), f"{target}: no such file"
        assert not anchor or anchor in headings(file), f"{target}: no such heading"


@each_page
def test_commands_and_targets_exist(path):
    text = path.read_text()
    for module in re.findall(r"python -m ((?:service|benchmarks|cluster|models)[\w.]*\w)", text):
        assert importlib.util.find_spec(module), f"python -m {module}: no such command"
    made = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE):
        assert target in made, f"make {target}: no such target"


@each_page
def test_settings_exist(path):
    text = path.read_text()
    keys = set(re.findall(r"--([a-z_]+\.[\w.]+)", text))
    if "helm" not in path.parts:  # whose values have names of their own
        keys |= set(re.findall(rf"`((?:{SECTIONS})\.[a-z]\w*)`", text))
    for key in keys - NO_SETTINGS:
        assert key in SETTINGS, f"{key}: no such setting"


@each_page
def test_files_of_the_repository_exist(path):
    text = re.sub(r"`python -m [^`]*`", "", path.read_text())
    for name in re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", text):
        assert (ROOT / name).exists(), f"{name}: no such file"


@pytest.mark.parametrize("module", COMMANDS)
def test_each_command_tells_its_help(module, capsys):
    with pytest.raises(SystemExit) as end:
        importlib.import_module(module).main(["--help"])
    assert not end.value.code
    assert f"python -m {module}" in capsys.readouterr().out


def headings(file: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    text = re.sub(r"```.*?```", "", file.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
