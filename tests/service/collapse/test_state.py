"""What is remembered of a training's health: it resumes as it was, and nonsense is refused."""

import json
import math
from dataclasses import replace
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.collapse.state import HISTORY, CollapseState, Kind, Level, Measurement, Verdict
from service.documents import Document
from service.errors import DataError

CLOCKS = st.integers(0, 2**62)
MEASUREMENTS = st.builds(
    Measurement,
    CLOCKS,
    st.text(max_size=20),
    CLOCKS,
    st.dictionaries(st.text(max_size=9), st.floats()),
)
TROUBLED = st.builds(
    Verdict,
    st.sampled_from([Level.WARNING, Level.COLLAPSED]),
    st.sampled_from(Kind),
    st.text(max_size=50),
    CLOCKS,
)
STATES = st.builds(
    CollapseState,
    st.lists(MEASUREMENTS, max_size=4).map(tuple),
    TROUBLED | st.builds(Verdict, onset=CLOCKS),
    st.lists(st.text(max_size=50), max_size=3).map(tuple),
    st.none() | CLOCKS,
)


class Kept(Document):
    """A file that holds the state, as a checkpoint's manifest does."""

    version: Literal[1] = 1
    collapse: CollapseState


@pytest.mark.slow
@given(STATES)
def test_it_survives_json_to_the_bit_whatever_was_measured(state):
    again = Kept.from_bytes(Kept(collapse=state).to_bytes(), "kept.json").collapse
    assert repr(again) == repr(state)  # NaN, which equals nothing, and −0 included
    assert isinstance(again.verdict.level, Level)
    assert all(isinstance(measurement, Measurement) for measurement in again.history)


def test_levels_have_their_order():
    assert [level.severity for level in (Level.HEALTHY, Level.WARNING, Level.COLLAPSED)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("level", "kind"),
    [(Level.HEALTHY, Kind.DIVERGENCE), (Level.WARNING, None), (Level.COLLAPSED, None)],
)
def test_a_verdict_has_a_kind_just_where_it_is_not_healthy(level, kind):
    with pytest.raises(ValueError, match=f"a verdict of level {level} cannot have kind {kind}"):
        Verdict(level, kind)


def collapse_state(**changes: object) -> dict:
    """A state in JSON's terms, but for what is changed in its verdict or, by `state_…`, in itself."""
    state = CollapseState(
        (Measurement(16, "hold 8 px", 1, {"loss_d": math.nan}),),
        Verdict(Level.WARNING, Kind.DIVERGENCE, "words", 16),
    )
    plain = json.loads(Kept(collapse=state).to_bytes())["collapse"]
    for name, value in changes.items():
        part = plain if name.startswith("state_") else plain["verdict"]
        part[name.removeprefix("state_")] = value
    return plain


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"level": "dire"}, r"collapse\.verdict\.level: Input should be 'healthy', 'warning'"),
        ({"kind": "boredom"}, r"collapse\.verdict\.kind: Input should be 'numeric'"),
        ({"kind": None}, r"collapse\.verdict: .*a verdict of level warning cannot have kind None"),
        ({"onset": -1}, r"collapse\.verdict\.onset: Input should be greater than or equal to 0"),
        ({"reason": 7}, r"collapse\.verdict\.reason: Input should be a valid string"),
        ({"mood": "good"}, r"collapse\.verdict\.mood: Unexpected"),
        ({"state_rewound_to": "16"}, r"collapse\.rewound_to: Input should be a valid integer"),
        ({"state_protected": [3]}, r"collapse\.protected\.0: Input should be a valid string"),
        ({"state_history": [{"clock": 1}]}, r"collapse\.history\.0\.span: Field required"),
    ],
    ids=str,
)
def test_a_state_that_no_training_writes_is_refused_with_its_field(changes, field):
    content = json.dumps({"version": 1, "collapse": collapse_state(**changes)}).encode()
    with pytest.raises(DataError, match=rf"^there/kept\.json: damaged \({field}.*; restore it"):
        Kept.from_bytes(content, "there/kept.json")


def test_a_history_is_as_long_as_a_verdict_looks_back_and_no_longer():
    measurement = Measurement(16, "hold 8 px", 1, {})
    longest = replace(CollapseState(), history=(measurement,) * HISTORY)
    kept = Kept(collapse=longest).to_bytes()
    assert Kept.from_bytes(kept, "kept.json").collapse == longest
    longer = json.loads(kept)
    longer["collapse"]["history"] *= 2
    with pytest.raises(DataError, match=rf"collapse\.history: .*at most {HISTORY} items"):
        Kept.from_bytes(json.dumps(longer).encode(), "kept.json")
