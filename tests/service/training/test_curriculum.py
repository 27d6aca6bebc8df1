"""The clock's consequences: spans of whole cycles, alpha, and what is due."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import Stage
from service.config import Phase
from service.training.curriculum import Curriculum, due

PHASES = [
    Phase(resolution=8, hold_images=100, batch=16),
    Phase(resolution=16, fade_images=50, hold_images=10, batch=8, accumulation=2, lr_scale=0.5),
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
        starts = list(cycle.micro_batches())
        assert len(starts) == d_steps * cycle.span.accumulation
        assert starts[-1] + cycle.span.micro_batch == cycle.end
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


def test_a_new_rung_is_told_from_a_phase_at_the_same_one():
    again = Phase(resolution=16, hold_images=16, batch=16)
    curriculum = Curriculum([*PHASES, again], d_steps=1)
    assert [span.new_rung for span in curriculum.spans] == [True, True, False, False]
