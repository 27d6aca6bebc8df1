"""What answers at once imports little: --help, a typo and --print-config bring neither torch nor Ray."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT

SLOW = ("torch", "ray", "mlflow", "boto3", "webdataset", "sklearn")
CONFIGURED = ("train", "plan", "sweep")
COMMANDS = (*CONFIGURED, "pack", "sample", "evaluate", "export", "register")

SCRIPT = """
import contextlib, importlib, io, json, sys
from service.errors import UsageError
module, lines, slow = json.loads(sys.argv[1])
imported = []
for arguments in lines:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit, UsageError):
        importlib.import_module(module).main(arguments)
    imported.append([name for name in slow if name in sys.modules])
print(json.dumps(imported))
"""


def imported(module: str, *lines: list[str]) -> list[list[str]]:
    """Which of the slow packages are there after each line of arguments, all in a process of its own."""
    job = json.dumps([module, lines, SLOW])
    command = [sys.executable, "-c", SCRIPT, job]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_typos_are_answered_without_the_slow_packages(command):
    lines = ["--help"], ["--preset", "digits", "--sead", "3"], ["a", "b", "--reslution", "3"]
    assert imported(f"service.{command}", *lines) == [[], [], []]


@pytest.mark.slow
@pytest.mark.parametrize("command", CONFIGURED)
def test_the_configuration_is_resolved_and_refused_without_the_slow_packages(command):
    changes = ["--print-config"], ["--model.resolution", "31"], ["--evaluation.best", "kid"]
    lines = (["--preset", "digits", *change] for change in changes)
    assert imported(f"service.{command}", *lines) == [[], [], []]
