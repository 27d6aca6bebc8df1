"""The spool: nothing missing, nothing twice, whatever is away and wherever it crashes."""

import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.collapse.state import Kind, Level, Verdict
from service.errors import StorageError
from service.recording.record import Event, EventAction, Note, Record, SpanTime
from service.recording.spool import Mark, Segment, Spool
from service.storage import FolderStorage
from tests.live import segments


def records(*clocks: int) -> list[Record]:
    return [Record(clock, 1000.0 + clock, values={"loss": clock / 7}) for clock in clocks]


class Target:
    """Takes records, unless it is away."""

    def __init__(self):
        self.away = False
        self.got: list[int] = []

    def __call__(self, batch: list[Record]) -> None:
        if self.away:
            raise ConnectionError("away")
        self.got += [record.clock for record in batch]


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
    assert not segments(spool.storage)


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


@pytest.mark.slow
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
            spool.drain(lambda got: delivered.update(r.clock for r in got))
    except Crash:
        pass
    again: list[int] = []
    spool = Spool(FolderStorage(folder))
    for batch in planned:
        spool.add(records(*batch))
        spool.drain(lambda got: again.extend(r.clock for r in got))
    assert delivered | set(again) == {clock for batch in planned for clock in batch}
    assert len(again) == len(set(again))


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"values-0": "x"}'])
def test_a_damaged_mark_or_a_foreign_file_does_not_end_the_recording(tmp_path, content):
    storage, target = FolderStorage(str(tmp_path)), Target()
    storage.put("spool/mark.json", content)
    storage.put("spool/notes.jsonl", b"not ours")
    storage.put("spool/notes.records.json", b"not ours")
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


# What is read back --------------------------------------------------------------------------------

CLOCKS = st.integers(0, 2**62)
WORDS = st.text(max_size=30)
PLAIN = st.dictionaries(
    WORDS,
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | WORDS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
        max_leaves=5,
    ),
    max_size=3,
)
VERDICTS = st.builds(
    Verdict, st.sampled_from([Level.WARNING, Level.COLLAPSED]), st.sampled_from(Kind), WORDS, CLOCKS
)
SPAN_TIMES = st.builds(
    SpanTime, CLOCKS, CLOCKS, st.integers(1, 2**40), st.floats(allow_nan=False, allow_infinity=False)
)
RECORDS = st.builds(
    Record,
    CLOCKS,
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(0, 5),
    st.dictionaries(WORDS, st.floats(), max_size=3),
    st.none() | WORDS,
    st.none() | PLAIN,
    st.dictionaries(WORDS, st.floats(), max_size=3),
    st.none() | st.builds(Event, st.sampled_from(EventAction), WORDS, PLAIN),
    st.none()
    | st.builds(
        Note,
        st.none() | WORDS,
        st.none() | st.builds(Verdict) | VERDICTS,
        st.none() | st.lists(SPAN_TIMES, max_size=2).map(tuple),
    ),
)


@pytest.mark.slow
@given(st.lists(RECORDS, min_size=1, max_size=4))
def test_every_record_comes_out_of_the_spool_as_it_went_in_to_the_bit(tmp_path_factory, sent):
    folder = str(tmp_path_factory.mktemp("spool"))
    Spool(FolderStorage(folder)).add(sent)
    delivered: list[Record] = []
    Spool(FolderStorage(folder)).drain(delivered.extend)
    assert repr(delivered) == repr(sent)  # NaN, which equals nothing, and −0 included


SEGMENT = "spool/00000001-0123abcd.records.json"


def segment(**changes: object) -> bytes:
    """A segment with one record at clock 2, as it is stored, but for what is changed in the record."""
    content = json.loads(Segment(records=tuple(records(2))).to_bytes())
    content["records"][0] |= changes
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"damaged \(Invalid JSON: EOF"),
        (segment()[:-20], r"damaged \(Invalid JSON: EOF"),
        (b"\xff\xfe" + segment(), r"damaged \(Invalid JSON"),
        (b"[]", r"damaged \(Input should be an object\)"),
        (segment().replace(b'"version": 2', b'"version": 1'), "has version 1, but this service reads"),
        (b'{"records": []}', "has no version, but this service reads version 2"),
        (segment(clock=-1), r"damaged \(records\.0\.clock: Input should be greater than or equal to 0"),
        (segment(clock=2**63), r"damaged \(records\.0\.clock: Input should be less than"),
        (segment(clock="2"), r"damaged \(records\.0\.clock: Input should be a valid integer"),
        (segment(time=math.nan), r"damaged \(records\.0\.time: Input should be a finite number"),
        (
            segment(values={"loss": "low"}),
            r"damaged \(records\.0\.values\.loss: Input should be a valid",
        ),
        (segment(values=None), r"damaged \(records\.0\.values: Input should be an object"),
        (segment(mood="good"), r"damaged \(records\.0\.mood: Unexpected keyword"),
        (segment(picture="p" * 100_001), r"damaged \(records\.0\.picture: String should have at most"),
        (
            segment(event={"action": "laugh", "reason": ""}),
            r"damaged \(records\.0\.event\.action: Input",
        ),
        (
            segment(note={"verdict": {"level": "warning"}}),
            r"damaged \(records\.0\.note\.verdict: .*a verdict",
        ),
        (b"[" * 100_000, r"damaged \(Invalid JSON: recursion limit"),
    ],
    ids=range(17),
)
def test_a_damaged_segment_is_named_and_stays_and_the_others_are_delivered(
    tmp_path, caplog, content, words
):
    storage, target = FolderStorage(str(tmp_path)), Target()
    storage.put(SEGMENT, content)
    spool = Spool(storage)
    spool.add(records(3, 4))
    spool.drain(target)
    assert target.got == [3, 4]
    assert storage.sizes("spool/").keys() == {SEGMENT, "spool/mark.json"}
    assert storage.get(SEGMENT) == content
    refusal = rf"event=segment_refused error={tmp_path}/{SEGMENT}: {words}.*"
    assert re.search(refusal, caplog.text)
    assert re.search(refusal + "(it is left where it is|use the version of the service)", caplog.text)
    # The next start meets it again, and goes on past it.
    again = Spool(storage)
    again.add(records(5))
    again.drain(target)
    assert target.got == [3, 4, 5]
    assert storage.get(SEGMENT) == content


def test_a_segment_that_went_missing_is_tried_again_as_storage_that_fails(tmp_path):
    storage, target = FolderStorage(str(tmp_path)), Target()
    spool = Spool(storage)
    spool.add(records(1))
    (key,) = storage.sizes("spool/")
    content = storage.get(key)
    storage.delete([key])
    with pytest.raises(StorageError):
        spool.drain(target)
    storage.put(key, content)
    spool.drain(target)
    assert target.got == [1]


@pytest.mark.parametrize(
    "content",
    [b'{"version": 1, "clocks": {"values-0": 9}}', b'{"version": 2, "clocks": {"values-0": -1}}',
     b'{"version": 2, "clocks": {"values-0": 9}, "mood": "good"}', b'{"version": 2}'],
)  # fmt: skip
def test_a_mark_that_is_none_is_told_and_nothing_is_dropped_for_it(tmp_path, caplog, content):
    storage, target = FolderStorage(str(tmp_path)), Target()
    storage.put("spool/mark.json", content)
    spool = Spool(storage)
    assert f"event=mark_damaged error={tmp_path}/spool/mark.json: " in caplog.text
    spool.add(records(1, 9))
    spool.drain(target)
    assert target.got == [1, 9]
    assert Mark.from_bytes(storage.get("spool/mark.json"), "mark").clocks == {"values-0": 9}


def test_what_is_added_while_it_drains_is_given_to_both(tmp_path):
    spool = Spool(FolderStorage(str(tmp_path)))
    spool.add(records(16))
    first, second = [], []

    def begin(batch: list[Record]) -> None:
        first.extend(record.clock for record in batch)
        if first == [16]:
            spool.add(records(32))

    def deliver(batch: list[Record]) -> None:
        second.extend(record.clock for record in batch)
        if second == [16]:
            spool.add(records(48))

    spool.drain(deliver, begin)
    assert (first, second) == ([16, 32, 48], [16, 32, 48])
    assert segments(spool.storage) == []
