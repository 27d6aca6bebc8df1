"""Files that the service reads back: what was written comes back; all else is refused by its name."""

import importlib
import json
import math
import pkgutil
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

import cluster
import service
from cluster.local import Process, StackDocument
from service import documents
from service.collapse.state import CollapseState, Kind, Level, Measurement, Verdict
from service.data.index import About, IndexHead
from service.data.indexing import MarksDocument
from service.data.packing import Part, PartDocument
from service.documents import Clock, Count, Digest, Document, Plain, Seconds
from service.engine.plain import PARTS, PlainState
from service.errors import DataError
from service.recording.record import Event, EventAction, Note, Record, Refusal, SpanTime
from service.recording.spectra import SpectraDocument
from service.recording.spool import Mark, Segment
from service.recording.status import StatusDocument
from service.run.commits import FileEntry, Manifest
from service.run.directory import RunDocument
from service.run.failure import FailureDocument
from service.run.ranking import Score, ScoreDocument
from service.storage.lock import Holder
from service.training.memory import FittedDocument
from service.tuning.plan import Search, SweepDocument
from service.weights.start import InitDocument

ADDRESS = "s3://bucket/runs/faces/sample.json"


@dataclass(frozen=True)
class Inner:
    """Part of a document."""

    name: str
    share: Annotated[float, Field(ge=0, le=1)]


class Sample(Document):
    """A document with a field of every kind that documents have."""

    remedy: ClassVar[str] = "wipe it and begin again"

    version: Literal[3] = 3
    clock: Clock
    count: Count
    seconds: Seconds
    digest: Digest
    level: Level
    inner: tuple[Inner, ...]
    numbers: dict[str, float]
    plain: Plain
    word: str | None = None


TEXT = st.text(max_size=20)
NATURAL = st.integers(0, 2**62)
PLAIN = st.dictionaries(
    TEXT,
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats() | TEXT,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)
SAMPLES = st.builds(
    Sample,
    clock=NATURAL,
    count=NATURAL,
    seconds=st.floats(allow_nan=False, allow_infinity=False),
    digest=st.text("0123456789abcdef", min_size=64, max_size=64),
    level=st.sampled_from(Level),
    inner=st.lists(st.builds(Inner, TEXT, st.floats(0, 1)), max_size=3).map(tuple),
    numbers=st.dictionaries(TEXT, st.floats(), max_size=4),
    plain=PLAIN,
    word=st.none() | TEXT,
)
SAMPLE = Sample(
    clock=640, count=3, seconds=1.5, digest="0a" * 32, level=Level.HEALTHY,
    inner=(Inner("first", 0.25), Inner("second", 1.0)), numbers={"loss": math.nan, "best": -math.inf},
    plain={"nested": [{"deep": None}]},
)  # fmt: skip


def changed(document: Document, **changes: object) -> bytes:
    """The document's file, but for these fields; a field that becomes Ellipsis is missing."""
    content = json.loads(document.to_bytes()) | changes
    return json.dumps({name: value for name, value in content.items() if value is not ...}).encode()


@given(SAMPLES)
def test_what_is_written_comes_back_to_the_bit(sample):
    again = Sample.from_bytes(sample.to_bytes(), ADDRESS)
    assert repr(again) == repr(sample)  # NaN, which equals nothing, and −0 included
    assert again.to_bytes() == sample.to_bytes()


def test_infinities_and_nan_are_kept_as_what_they_are():
    again = Sample.from_bytes(SAMPLE.to_bytes(), ADDRESS)
    assert math.isnan(again.numbers["loss"])
    assert again.numbers["best"] == -math.inf
    assert b'"best": -Infinity' in SAMPLE.to_bytes()


def test_a_document_is_read_by_people_too():
    assert SAMPLE.to_bytes().startswith(b'{\n  "version": 3,\n  "clock": 640,\n')


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"clock": -1}, "clock: Input should be greater than or equal to 0"),
        ({"clock": 2**62 + 1}, f"clock: Input should be less than or equal to {2**62}"),
        ({"clock": 10**400}, "clock: Input should be less than or equal"),
        ({"clock": "640"}, "clock: Input should be a valid integer"),
        ({"clock": 640.0}, "clock: Input should be a valid integer"),
        ({"clock": True}, "clock: Input should be a valid integer"),
        ({"clock": ...}, "clock: Field required"),
        ({"clock": None}, "clock: Input should be a valid integer"),
        ({"seconds": math.nan}, "seconds: Input should be a finite number"),
        ({"seconds": math.inf}, "seconds: Input should be a finite number"),
        ({"seconds": "1.5"}, "seconds: Input should be a valid number"),
        ({"digest": "0A" * 32}, "digest: String should match pattern"),
        ({"digest": "0a" * 33}, "digest: String should match pattern"),
        ({"level": "dire"}, "level: Input should be 'healthy', 'warning' or 'collapsed'"),
        ({"level": 0}, "level: Input should be"),
        ({"inner": {}}, "inner: Input should be a valid array"),
        (
            {"inner": [{"name": "x", "share": 0}, {"name": "y", "share": 1.5}]},
            "inner.1.share: Input should",
        ),
        ({"inner": [{"name": "x", "share": math.nan}]}, "inner.0.share: Input should be"),
        ({"inner": [{"name": "x", "share": 1, "mood": "good"}]}, "inner.0.mood: Unexpected keyword"),
        ({"inner": [{"share": 1}]}, "inner.0.name: Field required"),
        ({"numbers": {"loss": "low"}}, "numbers.loss: Input should be a valid number"),
        ({"numbers": [1.0]}, "numbers: Input should be an object"),
        ({"plain": []}, "plain: Input should be an object"),
        ({"word": 7}, "word: Input should be a valid string"),
        ({"mood": "good"}, "mood: Extra inputs are not permitted"),
    ],
    ids=str,
)
def test_a_field_that_is_not_as_it_should_be_is_told_with_the_file_and_the_remedy(changes, field):
    with pytest.raises(DataError) as error:
        Sample.from_bytes(changed(SAMPLE, **changes), ADDRESS)
    message = str(error.value)
    assert message.startswith(f"{ADDRESS}: damaged ({field}")
    assert message.endswith("); wipe it and begin again")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (..., "has no version"),
        (None, "has no version"),
        (2, "has version 2"),
        (4, "has version 4"),
        ("3", 'has version "3"'),
        (3.5, "has version 3.5"),
        ([3], "has version [3]"),
        ("v" * 1000, f'has version "{"v" * 19}'),
    ],
    ids=range(8),
)
def test_another_version_is_told_as_that_whatever_else_is_in_the_file(version, words):
    """Not as damage: nobody is to delete what another version of the service can use."""
    for more in ({}, {"mood": "good"}, {"clock": "long ago"}):
        with pytest.raises(DataError) as error:
            Sample.from_bytes(changed(SAMPLE, version=version, **more), ADDRESS)
        assert str(error.value) == (
            f"{ADDRESS}: {words}, but this service reads version 3; use the version of the service that"
            " wrote it, or start anew elsewhere"
        )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"{",
        b"[]",
        b"3",
        b"null",
        b'"text"',
        b"\0" * 1000,
        b"\xff\xfe{}",
        b'{"version": 3, "clock": 1} and more',
        b"{'version': 3}",
        SAMPLE.to_bytes()[:-3],
        SAMPLE.to_bytes().replace(b"first", b"fi\xffst"),
        SAMPLE.to_bytes().decode().encode("utf-16"),
        SAMPLE.to_bytes().replace(b"first", b"fi\\udce9st"),
        b"[" * 100_000,
        b'{"version": 3, "plain": ' + b'{"a":' * 100_000,
        b'{"version": 3, "plain": ' + b'{"a":' * 900 + b"1" + b"}" * 901,
        b'{"version": 3, "clock": ' + b"9" * 10_000 + b"}",
    ],
    ids=range(19),
)
def test_what_is_no_such_document_at_all_is_damage(content):
    with pytest.raises(DataError) as error:
        Sample.from_bytes(content, ADDRESS)
    message = str(error.value)
    assert message.startswith(f"{ADDRESS}: damaged (")
    assert message.endswith("); wipe it and begin again")
    assert len(message) < 500


def test_a_file_larger_than_any_is_refused_before_it_is_parsed(monkeypatch):
    content = SAMPLE.to_bytes()
    monkeypatch.setattr(documents, "LARGEST_BYTES", 100)
    for owner, name in ((Sample, "model_validate_json"), (json, "loads")):
        monkeypatch.setattr(owner, name, lambda data: pytest.fail("it was parsed"))
    reason = f"{len(content)} bytes, over the limit of 100"
    with pytest.raises(DataError, match=rf"sample\.json: damaged \({reason}\); wipe it"):
        Sample.from_bytes(content, ADDRESS)


@given(st.binary(max_size=200) | SAMPLES.map(Sample.to_bytes), st.data())
def test_whatever_bytes_are_read_nothing_but_a_document_or_a_data_error_comes_of_them(content, data):
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(0, 3), "changes") if content else 0):
        damaged[data.draw(st.integers(0, len(content) - 1), "place")] = data.draw(st.integers(0, 255))
    try:
        sample = Sample.from_bytes(bytes(damaged), ADDRESS)
    except DataError as error:
        message = str(error)
    else:
        message = f"{ADDRESS}: {type(sample).__name__}"
    assert message.startswith((f"{ADDRESS}: damaged (", f"{ADDRESS}: has ", f"{ADDRESS}: Sample"))


@pytest.mark.parametrize(
    "changes",
    [{"word": "caf\udce9"}, {"numbers": {"caf\udce9": 1.0}}, {"inner": (Inner("caf\udce9", 1.0),)},
     {"plain": {"a": [{"b": 'so-called "caf\udce9"'}]}}],
    ids=ascii,
)  # fmt: skip
def test_a_name_that_is_no_text_is_told_and_never_written_down_as_another(changes):
    with pytest.raises(
        DataError, match=r"caf\\udce9.*: not valid UTF-8, so it cannot be written; rename it"
    ):
        SAMPLE.model_copy(update=changes).to_bytes()


def test_a_document_is_as_it_was_read():
    with pytest.raises(ValueError, match="frozen"):
        SAMPLE.clock = 1


# Every document of the service --------------------------------------------------------------------

CONFIG: Plain = {"run": {"seed": 0}, "phases": [{"resolution": 8, "batch": 16}]}
VERDICT = Verdict(Level.WARNING, Kind.D_OVERFIT, "add data", 16)
DOCUMENTS: dict[type[Document], Document] = {
    Holder: Holder(token=3, host="here", pid=7, started=1.5, renewed=2.5, lease_s=60.0),
    RunDocument: RunDocument(key="5f1d" * 8, fingerprint="5f1d" * 16, config=CONFIG),
    Manifest: Manifest(
        token=1,
        sequence=2,
        files={f"{part}.pt": FileEntry(10, "0a" * 32) for part in PARTS},
        state=PlainState(
            0,
            640,
            1,
            ((320, {"training.r1": 1.0}),),
            CollapseState((Measurement(640, "hold 8 px", 4, {"shift": 0.5}),), VERDICT, ("kept",), 320),
        ),
        config=CONFIG,
        metrics={"loss_d": math.inf},
    ),
    FittedDocument: FittedDocument(device="NVIDIA H100", images={"hold 8 px, batch 16": 4}),
    ScoreDocument: ScoreDocument(score=Score(640, 8, "kid", 0.25, {"kid": 0.25}, 1000)),
    Segment: Segment(
        records=(
            Record(
                640,
                1.5,
                1,
                {"loss_d": 1.0},
                "pictures/grid.png",
                {"address": "there"},
                {"fid": 40.0},
                Event(EventAction.ALERT, "add data", {"kind": "d_overfit"}),
                Note("hold 8 px", VERDICT, (SpanTime(0, 640, 16, 0.5),)),
            ),
        )
    ),
    Mark: Mark(clocks={"values-0": 640}),
    Refusal: Refusal(record=Record(640, 1.5, values={"loss_d": 1.0}), what="loss_d", reason="too long"),
    IndexHead: IndexHead(
        fingerprint="0a" * 32,
        shards={"shard-000000.tar": 10240},
        etags={"shard-000000.tar": '"0a0a"'},
        about=About("digits", 0.05, 32, 1, ("0", "1"), ("broken.png: why",), 2, {"seed": 0}),
    ),
    SpectraDocument: SpectraDocument(
        names=("spectrum.generator/first.weight", "stable_rank.generator/first.weight"),
        looks=((3200, 0), (6400, 1)),
        values=((1.5, 3.25), (None, 2.0)),
    ),
    InitDocument: InitDocument(
        address="s3://bucket/runs/faces/checkpoints/000000000640-000001-000002",
        digest="0a" * 32,
        file=FileEntry(10, "0a" * 32),
        taken=("generator/dense.weight",),
        drawn=("generator/embedding.table.weight",),
    ),
    FailureDocument: FailureDocument(message="why", config=CONFIG),
    StatusDocument: StatusDocument(
        time=1.0,
        started=0.5,
        status="RUNNING",
        clock=16,
        end=320,
        attempt=1,
        stage="hold 8 px",
        verdict=Verdict(),
        values={"images": 16.0},
        left_s=2.0,
        checkpoint_time=0.75,
        trouble="",
        still="",
        error="why",
    ),
    MarksDocument: MarksDocument(marks={"shard-000000.tar": "1795783596059771247-2540061"}),
    PartDocument: PartDocument(
        part=Part(
            "recipe",
            "shard-000000.tar",
            10240,
            "",
            "d" * 64,
            ["a"],
            [3],
            [512],
            [99],
            ["broken.png: why"],
        )
    ),
    SweepDocument: SweepDocument(
        key="key",
        config=CONFIG,
        space={"training.lr": "log 1e-4..1e-2"},
        search=Search("random", 8, 0, "asha", 640, 3),
        end=6400,
    ),
    StackDocument: StackDocument(
        processes={"s3": Process(7, 1.5, 8333, "s3.log", "http://127.0.0.1:8333/")},
        environment={"AWS_ENDPOINT_URL": "http://127.0.0.1:8333"},
        temporary=["/tmp/gan-ray-x"],
        ports={"s3": [8333]},
    ),
}
EACH = pytest.mark.parametrize("kind", DOCUMENTS, ids=lambda kind: kind.__name__)


def all_documents() -> set[type[Document]]:
    """Every kind of document in the code."""
    for package in (service, cluster):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    kinds, new = set(), {Document}
    while new:
        new = {kind for parent in new for kind in parent.__subclasses__()}
        kinds |= new
    return {kind for kind in kinds if kind.__module__.startswith(("service.", "cluster."))}


def test_the_documents_tested_here_are_all_that_there_are():
    assert set(DOCUMENTS) == all_documents()


@EACH
def test_each_comes_back_as_it_was_written(kind):
    again = kind.from_bytes(DOCUMENTS[kind].to_bytes(), ADDRESS)
    assert again == DOCUMENTS[kind]
    assert repr(again) == repr(DOCUMENTS[kind])


@EACH
def test_each_tells_another_version_from_damage(kind):
    for version in (..., 0, kind.model_fields["version"].default + 1):
        with pytest.raises(DataError, match=rf"^{ADDRESS}: has (no version|version \d), but this"):
            kind.from_bytes(changed(DOCUMENTS[kind], version=version), ADDRESS)


@EACH
def test_each_says_what_to_do_where_it_is_damaged(kind):
    for content in (b"", b"[]", b"\xff", b"[" * 100_000, DOCUMENTS[kind].to_bytes()[:-4]):
        with pytest.raises(DataError) as error:
            kind.from_bytes(content, ADDRESS)
        assert str(error.value).startswith(f"{ADDRESS}: damaged (")
        assert str(error.value).endswith(f"; {kind.remedy}")


def places(content: object, path: tuple = ()) -> list[tuple]:
    """The paths to all that a JSON value is made of, but for plain values, which may be anything."""
    inner = []
    if isinstance(content, dict):
        inner = [(*path, key) for key in content]
    if isinstance(content, list):
        inner = [(*path, number) for number in range(len(content))]
    deeper = [place for one in inner for place in places(content[one[-1]], one)]
    return [*inner, *deeper]


def replaced(content: object, path: tuple, value: object) -> object:
    """The JSON value with another one at this path."""
    first, *rest = path
    part = replaced(content[first], tuple(rest), value) if rest else value
    if isinstance(content, list):
        return [part if number == first else item for number, item in enumerate(content)]
    return content | {first: part}


PLAIN_PLACES = {
    FailureDocument: ["config"],
    RunDocument: ["config"],
    Manifest: ["config"],
    SweepDocument: ["config", "space"],
    Segment: ["records.0.checkpoint", "records.0.event.details"],
    Refusal: ["record.checkpoint", "record.event.details"],
    IndexHead: ["about.recipe"],
}
"""Where a document may hold whatever JSON can."""


@EACH
def test_each_names_the_field_that_is_of_another_kind_wherever_it_lies(kind):
    content = json.loads(DOCUMENTS[kind].to_bytes())
    free = tuple(f"{place}." for place in PLAIN_PLACES.get(kind, ()))
    for path in places(content):
        field = ".".join(map(str, path))
        if field == "version" or (f"{field}.".startswith(free) and f"{field}." not in free):
            continue
        damaged = json.dumps(replaced(content, path, [[False]])).encode()
        with pytest.raises(DataError) as error:
            kind.from_bytes(damaged, ADDRESS)
        assert str(error.value).startswith(f"{ADDRESS}: damaged ({field}"), field
        assert str(error.value).endswith(f"; {kind.remedy}")


@EACH
def test_each_names_a_field_that_it_does_not_know(kind):
    with pytest.raises(DataError, match=rf"^{ADDRESS}: damaged \(mood: Extra inputs are"):
        kind.from_bytes(changed(DOCUMENTS[kind], mood="good"), ADDRESS)
