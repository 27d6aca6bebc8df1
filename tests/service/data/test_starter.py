"""Processes are forked from one that stays, and whatever becomes of it or of them, none is left."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from service.data.starter import FILES_AT_ONCE, Starter, starter
from tests.conftest import ROOT


@pytest.fixture
def own():
    return starter()


def tell(end: int, *files: int) -> None:
    """What a process has: given files, others, a variable, a folder, threads."""
    others = len(os.listdir("/proc/self/fd")) - len(files)
    threads = len(os.listdir("/proc/self/task"))
    told = len(files), others, os.environ.get("TOLD"), os.getcwd(), threads
    os.write(end, json.dumps(told).encode())


def stand(*_: int) -> None:
    time.sleep(600)


def fail(*_: int) -> None:
    raise ValueError("no such thing")


def told_by(own: Starter, *files: int) -> list:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert own.start("told", tell, [theirs.fileno(), *files])
        return json.loads(ours.recv(1000))


@pytest.mark.slow
def test_a_process_has_the_files_environment_and_folder_of_now(own, tmp_path, monkeypatch):
    count, others, *now = told_by(own)
    assert (count, now) == (0, [None, os.getcwd(), 1])
    monkeypatch.setenv("TOLD", "later")
    monkeypatch.chdir(tmp_path)
    many = FILES_AT_ONCE + 3
    assert told_by(own, *[0] * many) == [many, others, "later", str(tmp_path), 1]


def test_a_process_keeps_no_file_of_another(own):
    before = told_by(own)
    first = own.start("first", stand, [0] * 100)
    assert told_by(own) == before
    own.end(first)


def test_the_exit_code_of_one_that_fails_is_told(own):
    assert own.exit_code(own.start("failing", fail, [])) == 1


def test_one_that_was_stopped_is_ended(own):
    pid = own.start("standing", stand, [])
    os.kill(pid, signal.SIGSTOP)
    own.end(pid)
    own.end(pid)  # which ended before
    assert not psutil.pid_exists(pid)


@pytest.mark.slow
def test_a_starter_that_was_killed_starts_nothing_and_another_takes_its_place():
    used = starter()
    assert starter() is used
    os.kill(used.pid, signal.SIGKILL)
    assert used.start("late", stand, []) is None
    assert used.exit_code(None) == -signal.SIGKILL
    another = starter()
    assert another is not used
    assert told_by(another)[0] == 0


USER = """
import time
from tests.service.data.test_starter import *
own = starter()
print(own.pid, *(own.start(name, stand, []) for name in "ab"), flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_all_end_with_the_one_that_uses_them_even_those_that_were_stopped():
    user = subprocess.Popen([sys.executable, "-c", USER], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    processes = [psutil.Process(int(pid)) for pid in user.stdout.readline().split()]
    processes[1].suspend()
    user.kill()
    user.wait()
    assert psutil.wait_procs(processes, timeout=60)[1] == []
