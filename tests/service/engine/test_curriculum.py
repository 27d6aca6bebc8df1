"""The clock's consequences: spans of whole cycles, alpha, and what is due."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import Stage
from service.config import Phase
from service.engine.curriculum import Curriculum, due

PHASES = [
    Phase(resolution=8, hold_images=100, batch=16),
    Phase(resolution=16, fade_images=50, hold_images=10, batch=8, lr_scale=0.5),
]


def test_spans_are_rounded_up_to_whole_cycles():
    curriculum = Curriculum(PHASES, d_steps=2)
    assert [(s.start, s.end, s.cycle_images) for s in curriculum.spans] == [
        (0, 128, 32),
        (128, 192, 16),
        (192, 208, 16),
    ]
    assert curriculum.end == 208


def test_alpha_rises_from_0_and_reaches_1_where_the_hold_begins():
    curriculum = Curriculum(PHASES, d_steps=1)
    stages = [cycle.stage for cycle in curriculum.cycles(112, 192)]
    assert stages[0] == Stage(16, 0.0)
    assert stages[1] == Stage(16, 8 / 56)
    assert stages[7] == Stage(16, 1.0)


def test_beyond_the_table_the_last_phase_holds():
    curriculum = Curriculum(PHASES, d_steps=1)
    far = curriculum.at(curriculum.end + 8 * 1000)
    assert far.stage == Stage(16)
    assert (far.span.batch, far.span.lr_scale) == (8, 0.5)


def test_no_cycle_begins_between_two():
    with pytest.raises(ValueError, match="no cycle begins at 5"):
        Curriculum(PHASES, 1).at(5)


@given(st.integers(1, 3), st.integers(0, 400))
def test_cycles_follow_each_other_without_gap(d_steps, images):
    curriculum = Curriculum(PHASES, d_steps)
    cycles = list(curriculum.cycles(0, images))
    clock = 0
    for cycle in cycles:
        assert cycle.start == clock
        starts = list(cycle.batches())
        assert len(starts) == d_steps
        assert starts[-1] + cycle.span.batch == cycle.end
        clock = cycle.end
    assert clock >= images


@given(st.integers(1, 50), st.lists(st.integers(1, 20), min_size=1, max_size=50))
def test_due_fires_once_for_each_multiple_passed_in_small_steps(interval, steps):
    clock, fired = 0, 0
    for step in steps:
        fired += due(interval, clock, clock + min(step, interval))
        clock += min(step, interval)
    assert fired == clock // interval


def test_the_cycle_before_a_clock_is_the_one_that_ended_there():
    curriculum = Curriculum(PHASES, d_steps=2)
    cycles = list(curriculum.cycles(0, 300))
    for cycle in cycles:
        assert curriculum.before(cycle.end) == cycle
    assert curriculum.before(0) == cycles[0]


def test_a_turn_is_told_from_a_phase_at_the_same_rung():
    again = Phase(resolution=16, hold_images=16, batch=16)
    curriculum = Curriculum([*PHASES, again], d_steps=1)
    assert [span.turns for span in curriculum.spans] == [True, True, True, False]


def test_an_amendment_of_the_steps_cuts_a_fade_which_goes_on_to_its_end():
    plain, amended = Curriculum(PHASES, 1), Curriculum(PHASES, 1, [(128, 2)])
    assert amended.at(128).span.cycle_images == 2 * plain.at(128).span.cycle_images
    # the fade of 50 images, from 112 on, is 64 with the rounding of its larger cycles
    stages = [amended.at(images).stage for images in (112, 128, 144, 160, 176)]
    assert stages == [Stage(16, alpha) for alpha in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert [span.turns for span in amended.spans] == [True, True, False, True]
    assert Curriculum(PHASES, 1, [(128, 3), (128, 1)]).end == plain.end  # of two the later counts


@given(st.integers(1, 3), st.lists(st.tuples(st.integers(0, 30), st.integers(1, 3)), max_size=4))
def test_however_amended_cycles_follow_each_other_from_0_on(d_steps, wanted):
    """Changes come where a run was rewound to: at a boundary of the cycles so far."""
    changes: list[tuple[int, int]] = []
    for cycles_on, steps in wanted:
        curriculum = Curriculum(PHASES, d_steps, changes)
        images = changes[-1][0] if changes else 0
        for _ in range(cycles_on):
            images = curriculum.at(images).end
        changes.append((images, steps))
    amended = Curriculum(PHASES, d_steps, changes)
    cycles = list(amended.cycles(0, amended.end + 100))
    assert [c.start for c in cycles[1:]] == [c.end for c in cycles[:-1]]
    for cycle in cycles:
        steps = [d_steps, *(s for at, s in changes if at <= cycle.start)][-1]
        assert cycle.end - cycle.start == steps * cycle.span.batch
        assert amended.before(cycle.end) == cycle
    assert {c.stage.resolution for c in cycles} == {8, 16}
