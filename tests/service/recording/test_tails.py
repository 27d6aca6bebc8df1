"""The last lines of each process's log, in the run's directory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import StorageError
from service.recording import tails
from service.recording.tails import Tails
from service.storage import FolderStorage


def kept(storage: FolderStorage, process: str) -> list[str]:
    return storage.get(f"logs/{process}.jsonl").decode().splitlines()


def test_each_process_has_a_file_and_later_lines_follow(tmp_path):
    storage = FolderStorage(str(tmp_path))
    log = Tails(storage)
    log.store()
    assert storage.sizes() == {}
    log.add("worker-0", "one")
    log.add("worker-1", "uno")
    log.store()
    log.add("worker-0", "two")
    log.store()
    assert kept(storage, "worker-0") == ["one", "two"]
    assert kept(storage, "worker-1") == ["uno"]


def test_the_lines_of_an_earlier_process_stay_in_front(tmp_path):
    storage = FolderStorage(str(tmp_path))
    for line in ("first driver", "second driver", "third driver"):
        log = Tails(storage)
        log.add("driver", line)
        log.store()
    assert kept(storage, "driver") == ["first driver", "second driver", "third driver"]


@given(lines=st.lists(st.text("ab", max_size=30), max_size=40), every=st.integers(1, 5))
def test_no_file_is_larger_than_the_limit_and_the_newest_lines_are_there(tmp_path_factory, lines, every):
    storage = FolderStorage(str(tmp_path_factory.mktemp("run")))
    log = Tails(storage)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tails, "TAIL_BYTES", 100)
        for number, line in enumerate(lines):
            log.add("worker-0", line)
            if number % every == 0:
                log.store()
        log.store()
    content = storage.get("logs/worker-0.jsonl") if lines else b""
    assert len(content) <= 100
    found = content.decode().splitlines()
    assert found == lines[len(lines) - len(found) :]
    if len(found) < len(lines):
        assert len(content) + len(lines[-len(found) - 1]) + 1 > 100


def test_a_line_longer_than_the_limit_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(tails, "TAIL_BYTES", 100)
    storage = FolderStorage(str(tmp_path))
    log = Tails(storage)
    log.add("driver", "x" * 1000)
    log.store()
    assert kept(storage, "driver") == ["x" * 99]


def test_what_storage_did_not_take_is_stored_later(tmp_path, monkeypatch):
    storage = FolderStorage(str(tmp_path))
    log = Tails(storage)
    for process in ("driver", "worker-0"):
        log.add(process, "line")

    def refuse(key: str, data: bytes) -> None:
        raise StorageError("full")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "put", refuse)
        with pytest.raises(StorageError):
            log.store()
    log.store()
    assert kept(storage, "driver") == kept(storage, "worker-0") == ["line"]
