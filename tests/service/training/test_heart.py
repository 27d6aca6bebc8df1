"""A worker that stands still ends, and says where; one that waits for its storage does not."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from service.data import feeder
from service.data.feeder import SILENT_S
from service.run import commits
from service.storage import open_storage
from tests.conftest import ROOT
from tests.live import wait_for

TRAIN = """
import sys, threading
from service.data import feeder
from service.engine.step import Step
from service.storage import open_storage
from service.storage.lock import RunLock
from service.training import worker
from service.training.job import Job
from tests.conftest import tiny_config
from tests.live import SilentRecorder

data, run, stands_at = sys.argv[1], sys.argv[2], int(sys.argv[3])
config = tiny_config(data, run, scale={"hang_s": 8})
feeder.SILENT_S = 4.0  # seconds less to wait
cycle = Step.cycle

def stand(self, which, batches):
    if which.start == stands_at:
        threading.Event().wait()
    return cycle(self, which, batches)

token = RunLock(open_storage(run)).acquire()
worker.rehearse = lambda *_: None
Step.cycle = stand
worker.train(Job(config.model_dump(), token, 10**6, SilentRecorder()))
"""


@pytest.fixture
def start(digits, tmp_path) -> Iterator:
    """Starts a worker that stands still at a clock; what is left of it ends with the test."""
    started = []
    log = tmp_path / "log"

    def start(stands_at: int) -> tuple[subprocess.Popen, Path]:
        arguments = [str(digits), str(tmp_path / "run"), str(stands_at)]
        with open(log, "w") as out:
            process = subprocess.Popen(
                [sys.executable, "-c", TRAIN, *arguments],
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stderr=out,
            )
        started.append(process)
        return process, log

    yield start
    for process in started:
        process.kill()
        process.wait()


def has_committed(folder) -> bool:
    return bool(commits.find(open_storage(str(folder)))[0])


@pytest.mark.slow
def test_a_cycle_that_never_ends_ends_the_worker_with_its_stack(start):
    process, log = start(stands_at=240)
    assert process.wait(timeout=200) == 1
    output = log.read_text()
    assert "event=hang reason=worker 0 (process" in output
    assert "training a cycle for" in output
    assert "in stand" in output  # the stack names the place


@pytest.mark.slow
def test_a_reading_process_that_was_stopped_ends_the_worker(start, tmp_path):
    process, log = start(stands_at=-1)
    wait_for(lambda: has_committed(tmp_path / "run"))
    children = psutil.Process(process.pid).children(recursive=True)
    (reader,) = (child for child in children if child.name() == "gan-reader")
    reader.send_signal(signal.SIGSTOP)
    assert process.wait(timeout=200) == 1
    assert psutil.wait_procs([reader], timeout=60)[1] == []
    assert "waiting for data for" in log.read_text()


def test_data_may_take_as_long_as_something_moves():
    limits = {"limit_s": 60.0, "timeout_s": 60.0}
    waiting = partial(feeder.Waiting, request_bytes=0)
    assert waiting(for_s=50, silent_s=1, idle_s=1e9).may_end(**limits)
    assert waiting(for_s=110, silent_s=1, idle_s=110).may_end(**limits)  # the first request
    assert not waiting(for_s=130, silent_s=1, idle_s=130).may_end(**limits)
    assert waiting(for_s=3000, silent_s=1, idle_s=50).may_end(**limits)
    assert not waiting(for_s=20, silent_s=SILENT_S, idle_s=0).may_end(**limits)
    assert waiting(for_s=200, silent_s=1, idle_s=200, request_bytes=2 << 20).may_end(**limits)
