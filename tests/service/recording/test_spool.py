"""The spool: nothing missing, nothing twice, whatever is away and wherever it crashes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import StorageError
from service.recording.record import Record
from service.recording.spool import Spool
from service.storage import FolderStorage


def records(*clocks: int) -> list[Record]:
    return [Record(images, 1000.0 + images, values={"loss": images / 7}) for images in clocks]


class Target:
    """Takes records, unless it is away."""

    def __init__(self):
        self.away = False
        self.got: list[int] = []

    def __call__(self, batch: list[Record]) -> None:
        if self.away:
            raise ConnectionError("away")
        self.got += [record.images for record in batch]


def test_records_wait_for_their_target_and_keep_their_own_times(tmp_path):
    target, spool = Target(), Spool(FolderStorage(str(tmp_path)))
    target.away = True
    for clock in (1, 2, 3):
        spool.add(records(clock))
        with pytest.raises(ConnectionError):
            spool.drain(target)
    seen = []
    target.away = False
    spool.drain(lambda batch: seen.extend(batch))
    assert seen == records(1, 2, 3)
    assert spool.empty


def test_a_restart_finds_what_was_not_delivered(tmp_path):
    storage = FolderStorage(str(tmp_path))
    Spool(storage).add(records(1, 2))
    target, again = Target(), Spool(storage)
    again.add(records(3))
    again.drain(target)
    assert target.got == [1, 2, 3]


def test_what_a_resumed_run_replays_is_dropped(tmp_path):
    storage, target = FolderStorage(str(tmp_path)), Target()
    first = Spool(storage)
    first.add(records(1, 2, 3))
    first.drain(target)
    resumed = Spool(storage)
    resumed.add(records(2, 3, 4))
    resumed.drain(target)
    assert target.got == [1, 2, 3, 4]


def test_pictures_and_values_have_marks_of_their_own(tmp_path):
    spool, target = Spool(FolderStorage(str(tmp_path))), Target()
    spool.add(records(5))
    spool.add([Record(4, 0.0, picture="pictures/4.png")])
    spool.drain(target)
    assert target.got == [5, 4]


class Crash(Exception):
    pass


class CrashingStorage(FolderStorage):
    """Dies at a given write, as a process may."""

    def __init__(self, address: str, writes: int):
        super().__init__(address)
        self.writes = writes

    def put(self, key: str, data: bytes) -> None:
        self._count()
        super().put(key, data)

    def delete(self, keys) -> None:
        self._count()
        super().delete(keys)

    def _count(self) -> None:
        self.writes -= 1
        if self.writes < 0:
            raise Crash


@given(st.integers(0, 12), st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_a_crash_at_any_write_loses_and_doubles_nothing(tmp_path_factory, writes, batches):
    """The run replays from its beginning after the crash; points are told apart by their clock."""
    folder = str(tmp_path_factory.mktemp("spool"))
    delivered: set[int] = set()
    clocks = iter(range(1, 100))
    planned = [[next(clocks) for _ in range(size)] for size in batches]
    try:
        spool = Spool(CrashingStorage(folder, writes))
        for batch in planned:
            spool.add(records(*batch))
            spool.drain(lambda got: delivered.update(r.images for r in got))
    except Crash:
        pass
    again: list[int] = []
    spool = Spool(FolderStorage(folder))
    for batch in planned:
        spool.add(records(*batch))
        spool.drain(lambda got: again.extend(r.images for r in got))
    assert delivered | set(again) == {clock for batch in planned for clock in batch}
    assert len(again) == len(set(again))


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"values-0": "x"}'])
def test_a_damaged_mark_or_a_foreign_file_does_not_end_the_recording(tmp_path, content):
    storage, target = FolderStorage(str(tmp_path)), Target()
    storage.put("spool/mark.json", content)
    storage.put("spool/notes.jsonl", b"not ours")
    spool = Spool(storage)
    spool.add(records(1))
    spool.drain(target)
    assert target.got == [1]


def test_storage_that_cannot_be_written_keeps_the_spool_as_it_was(tmp_path):
    (tmp_path / "file").write_text("")
    spool = Spool(FolderStorage(str(tmp_path / "store")))
    spool.storage = FolderStorage(str(tmp_path / "file"))
    with pytest.raises(StorageError):
        spool.add(records(1))
    spool.storage = FolderStorage(str(tmp_path / "store"))
    spool.add(records(1))
    target = Target()
    spool.drain(target)
    assert target.got == [1]
