"""A driver comes back until it is done or has failed for good; the signals reach it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import local, supervise
from cluster.supervise import run_driver
from service.errors import UsageError
from tests.conftest import ROOT
from tests.live import wait_for

pytestmark = pytest.mark.slow

# Ends each time as the next of its arguments says: with that exit code, or by SIGKILL.
DRIVER = """
import os, pathlib, sys
log = pathlib.Path(sys.argv[1])
with log.open("a") as file:
    print("started", file=file)
how = sys.argv[1 + len(log.read_text().splitlines())]
os.kill(os.getpid(), 9) if how == "killed" else sys.exit(int(how))
"""


def run(tmp_path: Path, *ends: str, again: bool = True) -> tuple[int, int]:
    """The exit code, and how often the driver was started."""
    log = tmp_path / "log"
    code = run_driver([sys.executable, "-c", DRIVER, str(log), *ends], os.environ, again)
    return code, len(log.read_text().splitlines())


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        (["0"], (0, 1)),
        (["1", "killed", "0"], (0, 3)),
        (["killed", "3", "0"], (3, 2)),  # has failed for good
        (["2", "0"], (2, 1)),  # bad usage
        (["130", "0"], (130, 1)),  # was asked to end
    ],
)
def test_it_is_started_again_until_it_is_done_or_has_failed_for_good(
    tmp_path, monkeypatch, ends, expected
):
    monkeypatch.setattr(supervise, "FIRST_PAUSE_S", 0.01)
    assert run(tmp_path, *ends) == expected


def test_without_being_asked_nothing_is_started_again(tmp_path):
    assert run(tmp_path, "1", "0", again=False) == (1, 1)


def test_sigterm_reaches_the_driver_and_ends_both(tmp_path):
    started = tmp_path / "started"
    driver = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))\n"
        f"pathlib.Path({str(started)!r}).touch()\n"
        "time.sleep(600)"
    )
    script = (
        "import os, sys\n"
        "from cluster.supervise import run_driver\n"
        f"sys.exit(run_driver([sys.executable, '-c', {driver!r}], os.environ, again=True))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    wait_for(started.exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 1


def test_a_training_needs_a_stack_and_only_it_takes_flags(tmp_path):
    there = ["--dir", str(tmp_path)]
    with pytest.raises(UsageError, match=r"nothing is running; .* up"):
        local.main(["train", *there, "--supervise", "--", "--preset", "digits"])
    with pytest.raises(UsageError, match="-- --preset: only train takes what follows --"):
        local.main(["status", *there, "--", "--preset", "digits"])
