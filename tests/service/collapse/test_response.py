"""What follows a verdict: as configured, once for each change for the worse, and rewinds so often."""

import pytest

from service.collapse.response import Response, decide
from service.collapse.state import Kind, Level, Verdict
from service.config import CollapseSettings

WARNING = Verdict(Level.WARNING, Kind.DIVERGENCE, "words", 0)
COLLAPSED = Verdict(Level.COLLAPSED, Kind.DIVERGENCE, "words", 0)


@pytest.mark.parametrize(
    ("action", "rewinds", "expected"),
    [("alert", 0, "alert"), ("protect", 0, "protect"), ("stop", 0, "stop"), ("rewind", 0, "rewind"),
     ("rewind", 2, "rewind"), ("rewind", 3, "stop")],
)  # fmt: skip
def test_a_collapse_is_answered_as_configured_and_rewound_so_often(action, rewinds, expected):
    settings = CollapseSettings(action=action, max_rewinds=3)
    response = decide(COLLAPSED, WARNING, settings, rewinds)
    assert response is Response(expected)


@pytest.mark.parametrize("action", ["alert", "protect"])
def test_what_is_left_alone_is_told_once(action):
    settings = CollapseSettings(action=action)
    assert decide(COLLAPSED, COLLAPSED, settings, 0) is Response.NONE
    assert decide(WARNING, Verdict(), settings, 0) is Response.ALERT
    assert decide(WARNING, COLLAPSED, settings, 0) is Response.NONE
    assert decide(Verdict(), COLLAPSED, settings, 0) is Response.NONE


def test_another_kind_of_collapse_is_told_anew():
    other = Verdict(Level.COLLAPSED, Kind.MODE_COLLAPSE, "words", 0)
    assert decide(other, COLLAPSED, CollapseSettings(action="alert"), 0) is Response.ALERT


def test_every_action_that_may_be_configured_is_a_response():
    actions = CollapseSettings.model_fields["action"].annotation.__args__
    assert {*actions} == {*Response} - {Response.NONE}
