"""The local stack: up, healthy, down, and nothing else of the machine touched."""

import os
import stat

import psutil
import pytest

from cluster import local
from cluster.local import Stack, StackError
from tests.conftest import run_command


def test_status_and_env_tell_of_a_running_stack(stack):
    code, output = run_command("cluster.local", "status", "--dir", str(stack.folder))
    assert code == 0, output
    assert output.count("answers") == 3
    code, output = run_command("cluster.local", "env", "--dir", str(stack.folder))
    assert code == 0
    assert "export AWS_ENDPOINT_URL=" in output
    assert "export RAY_API_SERVER_ADDRESS=" in output
    assert stat.S_IMODE(os.stat(stack.folder / "stack.json").st_mode) == 0o600


def test_up_twice_keeps_what_runs_and_down_ends_all_of_it(tmp_path):
    first = Stack.load(tmp_path)
    first.up(["s3"])
    process = first.processes["s3"]
    again = Stack.load(tmp_path)
    again.up(["s3"])
    assert again.processes["s3"].pid == process.pid
    assert process.healthy
    again.down()
    assert not process.alive
    assert not psutil.pid_exists(process.pid)
    assert Stack.load(tmp_path).processes == {}


def test_down_leaves_a_later_process_of_the_same_pid_alone(tmp_path):
    mine = psutil.Process()
    stack = Stack.load(tmp_path)
    stack.processes["s3"] = local.Process(mine.pid, mine.create_time() - 100, 1, "log", "http://x")
    stack.down()
    assert mine.is_running()


def test_a_service_that_does_not_start_shows_the_end_of_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "OBJECT_STORE_BYTES", "much")
    stack = Stack.load(tmp_path)
    try:
        with pytest.raises(StackError, match=r"ray: ended; .*ray\.log:(\n.*)*object-store-memory"):
            stack.up(["ray"])
    finally:
        stack.down()


def test_status_without_a_stack_says_how_to_start_one(tmp_path):
    code, output = run_command("cluster.local", "status", "--dir", str(tmp_path))
    assert code == 1
    assert "cluster.local up" in output
