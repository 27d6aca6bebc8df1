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
module, arguments, slow = json.loads(sys.argv[1])
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit, UsageError):
    importlib.import_module(module).main(arguments)
print(json.dumps([name for name in slow if name in sys.modules]))
"""


def imported(module: str, *arguments: str) -> list[str]:
    """Which of the slow packages are there after a command has answered, in a process of its own."""
    job = json.dumps([module, arguments, SLOW])
    command = [sys.executable, "-c", SCRIPT, job]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_typos_are_answered_without_the_slow_packages(command):
    for arguments in (["--help"], ["--preset", "digits", "--sead", "3"], ["a", "b", "--reslution", "3"]):
        assert imported(f"service.{command}", *arguments) == [], arguments


@pytest.mark.parametrize("command", CONFIGURED)
def test_the_configuration_is_resolved_and_refused_without_the_slow_packages(command):
    for arguments in (["--print-config"], ["--model.resolution", "31"], ["--evaluation.best", "kid"]):
        assert imported(f"service.{command}", "--preset", "digits", *arguments) == [], arguments
