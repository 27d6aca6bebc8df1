"""The run lock: one holder, a rising token, dead holders overtaken, live ones not."""

import json
import subprocess
import sys
import threading
import time

import pytest

from service.errors import DataError, LockError, RefusedError, StorageError
from service.storage import open_storage
from service.storage.lock import LOCK_KEY, Holder, RunLock, check_token, read_holder
from tests.conftest import PLACES
from tests.live import wait_for


@pytest.fixture(params=PLACES)
def storage(request, tmp_path):
    if request.param == "folder":
        return open_storage(str(tmp_path / "run"))
    return open_storage(f"{request.getfixturevalue('s3')}/{tmp_path.name}")


def test_a_live_holder_is_not_overtaken_and_is_named(storage):
    lock = RunLock(storage)
    token = lock.acquire()
    with pytest.raises(LockError, match=r"in use by process \d+"):
        RunLock(storage).acquire()
    check_token(storage, token)
    lock.release()


def test_the_token_rises_with_every_holder(storage):
    tokens = []
    for _ in range(3):
        lock = RunLock(storage)
        tokens.append(lock.acquire())
        lock.release()
    assert tokens == [1, 2, 3]
    with pytest.raises(LockError, match="its token is 3, ours is 1"):
        check_token(storage, 1)


def test_a_holder_that_was_killed_on_this_host_is_overtaken_at_once(storage):
    lock = RunLock(storage)
    lock.acquire()
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    holder, _ = read_holder(storage)
    storage.put(LOCK_KEY, holder.model_copy(update={"pid": process.pid}).to_bytes())
    assert RunLock(storage).acquire() == 2


@pytest.mark.slow
def test_a_silent_holder_elsewhere_is_overtaken_when_its_lease_is_over(storage):
    lock = RunLock(storage)
    lock.acquire()
    holder, _ = read_holder(storage)
    away = holder.model_copy(update={"host": "another-host", "lease_s": 2.0, "renewed": time.time()})
    storage.put(LOCK_KEY, away.to_bytes())
    started = time.time()
    assert RunLock(storage).acquire() == 2
    assert time.time() >= started + 1.0


@pytest.mark.slow
def test_a_live_holder_whose_clock_is_an_hour_behind_is_not_overtaken(storage):
    behind = Holder(
        token=1, host="another-host", pid=7, started=1.0, renewed=time.time() - 3600, lease_s=4.0
    )
    storage.put(LOCK_KEY, behind.to_bytes())
    stop = threading.Event()

    def renew() -> None:
        for i in range(1000):
            storage.put(LOCK_KEY, behind.model_copy(update={"renewed": behind.renewed + i}).to_bytes())
            if stop.wait(0.5):
                break

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(LockError, match="in use by process 7 on another-host"):
            RunLock(storage).acquire()
    finally:
        stop.set()
        thread.join()


@pytest.mark.slow
def test_one_that_waits_takes_it_when_the_holder_is_done(storage):
    first = RunLock(storage)
    first.acquire()
    timer = threading.Timer(0.5, first.release)
    timer.start()
    assert RunLock(storage).acquire(patience_s=100) == 2
    timer.join()


def test_each_group_of_workers_has_a_higher_token_and_the_one_before_writes_no_more(storage):
    lock = RunLock(storage)
    first = lock.acquire()
    assert lock.advance(storage) == first + 1
    with pytest.raises(LockError, match="its token is 2, ours is 1"):
        check_token(storage, first)
    check_token(storage, first + 1)
    lock.release()
    assert RunLock(storage).acquire() == first + 2


def test_a_lock_that_was_taken_gives_no_higher_token(storage):
    lock = RunLock(storage)
    lock.acquire()
    holder, _ = read_holder(storage)
    storage.put(LOCK_KEY, holder.model_copy(update={"host": "another-host", "token": 7}).to_bytes())
    with pytest.raises(LockError, match="taken over by another process"):
        lock.advance(storage)
    lock.release()
    assert read_holder(storage)[0].host == "another-host"


@pytest.mark.stack
@pytest.mark.parametrize("ignored", ["IfNoneMatch", "IfMatch"])
def test_a_store_that_ignores_conditions_is_refused_and_left_unlocked(s3, tmp_path, ignored):
    storage = open_storage(f"{s3}/{tmp_path.name}")
    storage.client.meta.events.register(
        "provide-client-params.s3.PutObject", lambda params, **_: params.pop(ignored, None) and None
    )
    with pytest.raises(RefusedError, match=f"ignores {ignored[:2]}-.*use one with conditional writes"):
        RunLock(storage).acquire()
    assert read_holder(storage)[0].dead


def test_a_renewal_that_was_applied_but_not_answered_is_recognised(storage, monkeypatch):
    lock = RunLock(storage, lease_s=0.4)
    token = lock.acquire()
    answered, lost = storage.put_if, []

    def lose_the_first_answer(key: str, data: bytes, version: str | None) -> str:
        result = answered(key, data, version)
        if not lost:
            lost.append(version)
            raise StorageError("the answer was lost")
        return result

    monkeypatch.setattr(storage, "put_if", lose_the_first_answer)
    wait_for(lambda: lost)
    renewed = read_holder(storage)[0].renewed
    wait_for(lambda: read_holder(storage)[0].renewed > renewed)  # the next renewal is made all the same
    check_token(storage, token)
    lock.release()
    assert read_holder(storage)[0].dead
    assert RunLock(storage).acquire() == token + 1


def test_renewing_keeps_the_lease_alive(storage):
    lock = RunLock(storage, lease_s=1.0)
    lock.acquire()
    first = read_holder(storage)[0].renewed
    deadline = time.time() + 30
    while read_holder(storage)[0].renewed == first:
        assert time.time() < deadline
        time.sleep(0.05)
    lock.release()
    assert read_holder(storage)[0].dead


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"version": 2}', b'{"version": 2, "token": "a"}'])
def test_a_damaged_lock_says_what_to_do(storage, content):
    storage.put(LOCK_KEY, content)
    words = r"lock\.json: damaged \(.*\); if no process uses this folder, delete the file$"
    with pytest.raises(DataError, match=words):
        RunLock(storage).acquire()
    with pytest.raises(DataError, match=words):
        check_token(storage, 1)
    assert storage.get(LOCK_KEY) == content


@pytest.mark.parametrize("content", [b"{}", b'{"token": 1, "pid": 7}', b'{"version": 1}'])
def test_a_lock_of_another_version_of_the_service_is_not_overtaken(storage, content):
    storage.put(LOCK_KEY, content)
    words = r"lock\.json: has (no version|version 1), but this service reads version 2; use the version"
    with pytest.raises(DataError, match=words):
        RunLock(storage).acquire()
    assert storage.get(LOCK_KEY) == content


@pytest.mark.parametrize(
    ("field", "value"),
    [("token", -1), ("pid", 2**63), ("pid", 7.5), ("host", "h" * 256), ("renewed", float("inf")),
     ("lease_s", float("nan")), ("lease_s", 10**9)],
)  # fmt: skip
def test_a_holder_that_cannot_be_is_told_with_its_field(storage, field, value):
    lock = RunLock(storage)
    lock.acquire()
    lock.release()
    holder = json.loads(storage.get(LOCK_KEY))
    storage.put(LOCK_KEY, json.dumps(holder | {field: value}).encode())
    with pytest.raises(DataError, match=rf"lock\.json: damaged \({field}: (Input|String) should"):
        read_holder(storage)


def test_a_token_that_none_can_follow_is_damage(storage):
    RunLock(storage).acquire()
    holder, _ = read_holder(storage)
    storage.put(LOCK_KEY, holder.model_copy(update={"token": 2**62, "pid": 0}).to_bytes())
    with pytest.raises(DataError, match=r"lock\.json: damaged \(token: \d+ is too large\)"):
        RunLock(storage).acquire()


def test_a_lock_that_was_damaged_while_it_was_held_is_lost_and_told(storage, caplog):
    lock = RunLock(storage, lease_s=0.4)
    lock.acquire()
    storage.put(LOCK_KEY, b"{")
    wait_for(lambda: "event=lock_lost" in caplog.text)
    lock.release()
    assert "event=lock_not_released" in caplog.text
    assert storage.get(LOCK_KEY) == b"{"
