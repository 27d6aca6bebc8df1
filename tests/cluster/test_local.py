"""The local stack: up, healthy, down, and nothing else of the machine touched."""

import json
import math
import os
import re
import stat
import time
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
import pytest

from cluster import local
from cluster.local import BUCKET, Stack, StackError
from service.errors import DataError, UsageError
from service.storage import open_storage
from tests.conftest import need_package, run_command
from tests.live import LOOPBACK, listening

pytestmark = pytest.mark.slow


def test_status_and_env_tell_of_a_running_stack(stack):
    code, output = run_command("cluster.local", "status", "--dir", str(stack.folder))
    assert code == 0, output
    assert output.count("answers") == len(local.default_services())
    code, output = run_command("cluster.local", "env", "--dir", str(stack.folder))
    assert code == 0
    assert "export AWS_ENDPOINT_URL=" in output
    assert "export RAY_API_SERVER_ADDRESS=" in output
    assert f"export GAN_PROMETHEUS_TARGETS={stack.folder}/targets" in output
    assert stat.S_IMODE(os.stat(stack.folder / "stack.json").st_mode) == 0o600


def test_mlflows_server_starts_none_of_the_processes_that_wait_for_its_jobs(stack):
    server = psutil.Process(stack.processes["mlflow"].pid)
    commands = [" ".join(process.cmdline()) for process in server.children(recursive=True)]
    assert not [command for command in commands if "huey" in command or "jobs" in command]


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


def test_all_that_was_started_listens_on_loopback_alone(stack):
    started = [psutil.Process(process.pid) for process in stack.processes.values()]
    assert listening(started) <= LOOPBACK


def test_no_door_of_seaweedfs_is_open_without_a_key(stack, s3):
    open_storage(f"{s3}/locked").put("object", b"secret")
    _, _, _, filer, _ = stack.ports["s3"]
    for method, path in (("GET", "locked/object"), ("GET", "locked/"), ("PUT", "evil")):
        request = Request(f"http://127.0.0.1:{filer}/buckets/{BUCKET}/{path}", method=method, data=b"")
        with pytest.raises(HTTPError, match="401"):
            urlopen(request, timeout=10)


def test_ray_answers_nobody_without_its_token(stack):
    for path in ("api/jobs/", "api/v0/nodes", "nodes?view=summary"):
        with pytest.raises(HTTPError, match=r"40[13]"):
            urlopen(f"{stack.environment['RAY_API_SERVER_ADDRESS']}/{path}", timeout=10)


def test_a_killed_service_comes_back_where_its_clients_know_it(tmp_path):
    stack = Stack.load(tmp_path)
    try:
        stack.up(["s3"])
        before, environment = stack.processes["s3"], dict(stack.environment)
        killed = psutil.Process(before.pid)
        killed.kill()
        killed.wait(local.END_LIMIT_S)
        again = Stack.load(tmp_path)
        again.up(["s3"])
        assert again.processes["s3"].pid != before.pid
        assert again.processes["s3"].healthy
        assert again.environment == environment
    finally:
        Stack.load(tmp_path).down()


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


@pytest.mark.parametrize("content", ["{", "[]", '{"version": 2}', '{"version": 2, "processes": 1}'])
def test_a_damaged_state_is_told_with_the_remedy(tmp_path, content):
    (tmp_path / "stack.json").write_text(content)
    with pytest.raises(DataError, match=r"stack\.json: damaged \(.*\); .* remove the file, then up$"):
        local.main(["status", "--dir", str(tmp_path)])
    assert (tmp_path / "stack.json").read_text() == content


@pytest.mark.parametrize("content", ["{}", '{"processes": {}, "environment": {}, "temporary": []}'])
def test_a_state_of_another_version_is_told_and_left_alone(tmp_path, content):
    (tmp_path / "stack.json").write_text(content)
    for action in ("up", "down"):
        with pytest.raises(DataError, match=r"stack\.json: has no version, .* reads version 2; use the"):
            local.main([action, "--dir", str(tmp_path)])
    assert (tmp_path / "stack.json").read_text() == content


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"pid": 0}, r"processes\.s3\.pid: Input should be greater than or equal to 1"),
        ({"pid": "1"}, r"processes\.s3\.pid: Input should be a valid integer"),
        ({"port": 65536}, r"processes\.s3\.port: Input should be less than or equal to 65535"),
        ({"started": math.nan}, r"processes\.s3\.started: Input should be a finite number"),
        ({"mood": "good"}, r"processes\.s3\.mood: Unexpected keyword"),
    ],
    ids=str,
)
def test_a_process_that_cannot_be_is_told_with_its_field_and_no_key_with_it(tmp_path, changes, field):
    stack = Stack.load(tmp_path)
    stack.processes["s3"] = local.Process(1, 2.0, 3, "log", "http://x")
    stack.environment["AWS_SECRET_ACCESS_KEY"] = "very-secret"
    stack.save()
    assert Stack.load(tmp_path) == stack
    content = json.loads((tmp_path / "stack.json").read_text())
    content["processes"]["s3"] |= changes
    (tmp_path / "stack.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"stack\.json: damaged \({field}") as error:
        Stack.load(tmp_path)
    assert "very-secret" not in str(error.value)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="name a folder"):
        local.main(["up", "--dir", str(tmp_path / "file")])


def test_prometheus_goes_by_the_rules_and_down_forgets_the_runs_that_announced_themselves(tmp_path):
    need_package("/usr/bin/prometheus", "prometheus")
    stack = Stack.load(tmp_path)
    try:
        stack.up(["prometheus"])
        with urlopen(f"http://127.0.0.1:{stack.processes['prometheus'].port}/api/v1/rules") as answer:
            (group,) = json.load(answer)["data"]["groups"]
        assert "GanNoProgress" in [rule["name"] for rule in group["rules"]]
        target = tmp_path / "targets" / "key.json"
        target.write_text("[]")
    finally:
        stack.down()
    assert not target.exists()


def test_without_its_binary_prometheus_is_left_out_unless_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(local.shutil, "which", lambda name: None)
    assert local.default_services() == ["s3", "mlflow", "ray"]
    with pytest.raises(StackError, match="apt-get install --no-install-recommends prometheus"):
        Stack.load(tmp_path).up(["prometheus"])


def test_nodes_join_the_head_and_sigterm_reclaims_one(tmp_path):
    stack = Stack.load(tmp_path)
    try:
        stack.up(["ray"], nodes=1, node_cpus=77, head_cpus=0)
        assert sorted(alive(stack).values()) == [0, 77]
        head, node = (stack.processes[name] for name in ("ray", "node-1"))
        psutil.Process(node.pid).terminate()
        deadline = time.monotonic() + local.START_LIMIT_S
        while len(alive(stack)) > 1:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        psutil.wait_procs([psutil.Process(node.pid)] if node.alive else [], local.START_LIMIT_S)
        stack.up(["ray"], nodes=1)
        assert stack.processes["ray"].pid == head.pid
        assert stack.processes["node-1"].pid != node.pid
        assert len(alive(stack)) == 2
        every = list(stack.processes.values())
    finally:
        stack.down()
    assert not any(process.alive for process in every)


def alive(stack: Stack) -> dict[str, int]:
    """The CPUs of each living node, by its id, as Ray's head tells."""
    request = Request(
        stack.environment["RAY_API_SERVER_ADDRESS"] + "/api/v0/nodes?detail=1",
        headers={"Authorization": f"Bearer {stack.environment['RAY_AUTH_TOKEN']}"},
    )
    with urlopen(request, timeout=30) as answer:
        nodes = json.load(answer)["data"]["result"]["result"]
    return {
        n["node_id"]: int(n["resources_total"].get("CPU", 0)) for n in nodes if n["state"] == "ALIVE"
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["up", "--services", "s4"], "--services s4: choose s3, mlflow, prometheus or ray"),
        (["up", "--services", "s3,s4"], "--services s4: choose s3, mlflow, prometheus or ray"),
        (["up", "--nodes", "-1"], "--nodes -1: give a whole number from 0 to 16"),
        (["up", "--nodes", "two"], "--nodes two: give a whole number from 0 to 16"),
        (["up", "--head-cpus", "-1"], "--head-cpus -1: give a whole number from 0 to 1024"),
        (["up", "--node-cpus", "0"], "--node-cpus 0: give a whole number from 1 to 1024"),
        (["sideways"], "action sideways: choose up, status, env, train or down"),
        (["up", "--services", "prometheus", "--nodes", "1"], "no Ray head is running"),
    ],
)
def test_what_cannot_be_started_is_refused(tmp_path, arguments, words):
    try:
        with pytest.raises(UsageError, match=re.escape(words)):
            local.main([*arguments, "--dir", str(tmp_path)])
    finally:
        Stack.load(tmp_path).down()
