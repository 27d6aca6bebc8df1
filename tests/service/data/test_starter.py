"""Processes are forked from one that stays, and whatever becomes of it or of them, none is left."""

import json
import os
import signal
import socket
import subprocess
import sys
from multiprocessing.connection import Connection

import psutil
import pytest

from service.data.starter import FILES_AT_ONCE, Starter, starter
from tests.conftest import ROOT
from tests.forked import fail, report, stand


@pytest.fixture
def own():
    own = Starter()
    yield own
    own.close()


def report_of_a_process(own: Starter, *files: int) -> dict:
    """What a new process has that was given these files."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            pid = own.start("reporting", report, [theirs.fileno(), *files])
        content = json.loads(ours.recv(1000))
    assert own.exit_code(pid) == 0
    return content


def test_a_process_has_the_files_environment_and_folder_of_now(own, tmp_path, monkeypatch):
    first = report_of_a_process(own)
    few = {"given_files": 0, "variable": None, "folder": os.getcwd()}
    assert first == few | {"other_files": first["other_files"]}
    monkeypatch.setenv("FORKED_VARIABLE", "set later")
    monkeypatch.chdir(tmp_path)
    many = FILES_AT_ONCE + 3
    later = {"given_files": many, "variable": "set later", "folder": str(tmp_path)}
    assert report_of_a_process(own, *[0] * many) == first | later


def test_a_process_keeps_no_file_of_another(own):
    before = report_of_a_process(own)
    first = own.start("first", stand, [0] * 100)
    assert report_of_a_process(own) == before
    own.end(first)


def test_the_exit_code_of_one_that_fails_is_told(own):
    assert own.exit_code(own.start("failing", fail, [])) == 1


def test_one_that_was_stopped_is_ended(own):
    pid = own.start("standing", stand, [])
    os.kill(pid, signal.SIGSTOP)
    own.end(pid)
    own.end(pid)  # which ended before
    assert not psutil.pid_exists(pid)


def test_files_that_are_none_end_it_and_all_others(own):
    standing = psutil.Process(own.start("standing", stand, []))
    assert own.start("without", stand, [10**6]) is None
    assert not own.lives
    assert not standing.is_running()


def test_a_starter_that_was_stopped_is_ended_with_its_processes(own):
    processes = [psutil.Process(own.pid), psutil.Process(own.start("standing", stand, []))]
    for process in processes:
        process.suspend()
    own.close(limit_s=0.1)
    assert psutil.wait_procs(processes, timeout=60)[1] == []


def test_a_starter_that_was_killed_starts_nothing_and_another_takes_its_place():
    used = starter()
    assert starter() is used
    os.kill(used.pid, signal.SIGKILL)
    assert used.start("late", stand, []) is None
    assert used.exit_code(None) == -signal.SIGKILL
    another = starter()
    assert another is not used
    assert report_of_a_process(another)["given_files"] == 0


def test_it_ends_with_a_user_that_ends_before_it_has_sent_the_files():
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-m", "service.data.starter", str(theirs.fileno())]
        process = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()])
    control = Connection(ours.detach())
    control.send(("start", "late", stand, 1, ({}, "/")))
    control.close()
    assert process.wait(60) == 0


USER = """
import time
from service.data.starter import starter
from tests.forked import stand
own = starter()
print(own.pid, *(own.start(name, stand, []) for name in "ab"), flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_all_end_with_the_one_that_uses_them_even_those_that_were_stopped():
    user = subprocess.Popen([sys.executable, "-c", USER], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        processes = [psutil.Process(int(pid)) for pid in user.stdout.readline().split()]
        processes[1].suspend()
    finally:
        user.kill()
        user.wait()
    assert len(processes) == 3
    assert psutil.wait_procs(processes, timeout=60)[1] == []
