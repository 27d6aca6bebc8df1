"""Verdicts on histories: each kind by its signals, steady against single values, silent on health."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.collapse.detector import GRACE, GRACE_CYCLES, LASTING, RULES, SIGNALS, judge
from service.collapse.state import HISTORY, Kind, Level, Measurement

HEALTHY = {
    "loss_d": 1.5,
    "loss_g": 0.3,
    "logit_real": 0.5,
    "logit_fake": -0.4,
    "margin": 0.9,
    "spread_real": 0.7,
    "spread_fake": 0.6,
    "accuracy_real": 0.7,
    "accuracy_fake": 0.68,
    "accuracy_held_out": 0.65,
    "grad_norm_d": 10.0,
    "grad_norm_g": 3.0,
    "nonfinite": 0.0,
    "spectrum_discriminator": 5.0,
    "spectrum_generator": 4.0,
    "variety_pixels": 0.95,
    "within_pixels": 0.9,
    "roughness": 1.0,
    "shift": 0.3,
    "saturation": 0.0,
}
EVERY = 3200
TROUBLES = {
    "numeric": {"nonfinite": 0.04},
    "mode_collapse": {"within_pixels": 0.2},
    "divergence": {"shift": 2.5, "roughness": 3.5},
    "d_overfit": {"accuracy_real": 0.98, "accuracy_held_out": 0.3},
    "d_too_strong": {"accuracy_real": 0.999, "accuracy_fake": 1.0, "roughness": 0.3},
    "g_too_strong": {"margin": -0.6, "logit_fake": 0.4, "logit_real": -0.2, "shift": 1.0},
}


def history(*changes: dict, span: str = "hold 8 px", start: int = EVERY) -> list[Measurement]:
    return [
        Measurement(start + i * EVERY, span, (i + 2) * GRACE_CYCLES, HEALTHY | change)
        for i, change in enumerate(changes)
    ]


def levels(measurements: list[Measurement]) -> list[Level]:
    return [judge(measurements[: i + 1]).level for i in range(len(measurements))]


def test_the_kinds_tested_here_are_all_that_there_are():
    assert set(TROUBLES) == set(Kind)
    assert [rule.kind for rule in RULES] == list(Kind)


@pytest.mark.parametrize("kind", TROUBLES)
def test_what_lasts_is_a_warning_first_and_then_a_collapse_of_its_kind(kind):
    measured = history(*[{}] * 10, *[TROUBLES[kind]] * LASTING)
    last = judge(measured)
    assert (last.level, last.kind) == ("collapsed", kind)
    assert last.onset == 10 * EVERY  # the last measurement before the trouble
    if kind != "numeric":
        assert levels(measured)[10:] == ["healthy", "warning", "warning", "collapsed", "collapsed"]


def test_a_single_nan_is_a_collapse_at_once_even_in_the_first_measurement():
    assert judge(history({"nonfinite": 0.01})).level == "collapsed"


def test_reasons_give_the_numbers_and_what_to_do():
    verdict = judge(history(*[{}] * 10, *[TROUBLES["mode_collapse"]] * LASTING))
    assert "0.20 within classes" in verdict.reason
    assert "lower the generator's rate" in verdict.reason


@pytest.mark.parametrize("kind", [k for k in TROUBLES if k != "numeric"])
def test_one_bad_measurement_among_good_ones_changes_nothing(kind):
    measured = history(*[{}] * 10, TROUBLES[kind], *[{}] * LASTING, TROUBLES[kind], *[{}] * LASTING)
    assert set(levels(measured)) == {"healthy"}


@pytest.mark.parametrize("kind", [k for k in TROUBLES if k != "numeric"])
def test_one_good_measurement_among_bad_ones_does_not_hide_them(kind):
    bad = TROUBLES[kind]
    assert judge(history(*[{}] * 10, bad, bad, bad, {}, bad)).level == "collapsed"


def test_a_change_of_span_has_its_grace():
    before = history(*[{}] * 10)
    after = history(*[TROUBLES["divergence"]] * 3, span="fade to 16 px", start=11 * EVERY)
    assert levels(before + after[:GRACE])[-GRACE:] == ["healthy"] * GRACE
    assert judge(before + after).level == "healthy"


def test_the_first_cycles_of_a_run_are_judged_by_nothing_but_numbers():
    early = [replace(m, cycles=10 + i) for i, m in enumerate(history(*[TROUBLES["mode_collapse"]] * 9))]
    assert set(levels(early)) == {"healthy"}
    broken = [*early, replace(history({"nonfinite": 1.0})[0], cycles=20)]
    assert judge(broken).level == "collapsed"


def test_little_variety_that_grows_is_how_a_training_begins():
    growing = history(
        *[{"variety_pixels": v, "within_pixels": v} for v in (0.1, 0.15, 0.2, 0.27, 0.36, 0.47)]
    )
    assert set(levels(growing)) == {"healthy"}
    stuck = history(*[{"variety_pixels": 0.1, "within_pixels": 0.1}] * 8)
    assert judge(stuck).level == "collapsed"


@pytest.mark.parametrize("signal", ["grad_norm_d", "grad_norm_g"])
def test_gradients_that_explode_are_a_divergence(signal):
    measured = history(*[{}] * 12, *[{signal: 4000.0}] * LASTING)
    assert (judge(measured).level, judge(measured).kind) == ("collapsed", "divergence")


@pytest.mark.parametrize("signal", ["spectrum_discriminator", "spectrum_generator"])
def test_singular_values_that_explode_are_a_divergence_and_slow_growth_is_none(signal):
    measured = history(*[{}] * 12, *[{signal: 60.0}] * LASTING)
    assert (judge(measured).level, judge(measured).kind) == ("collapsed", "divergence")
    assert "60" in judge(measured).reason
    grown = history(*[{signal: 1.02**i} for i in range(HISTORY)])
    assert set(levels(grown)) == {"healthy"}


@pytest.mark.parametrize("signal", ["spread_real", "spread_fake", "margin"])
def test_logits_that_no_bounded_discriminator_gives_are_a_divergence(signal):
    measured = history(*[{}] * 12, *[{signal: 50_000.0}] * LASTING)
    assert (judge(measured).level, judge(measured).kind) == ("collapsed", "divergence")
    large = 2 * math.sqrt(3 * 1024**2)  # what images of 1024 px can differ by
    assert set(levels(history(*[{signal: large}] * 12))) == {"healthy"}


def test_a_strong_network_alone_is_no_collapse():
    strong_d = {"accuracy_real": 0.999, "accuracy_fake": 1.0}
    strong_g = {"margin": -0.6}
    for change in (strong_d, strong_g):
        assert judge(history(*[{}] * 10, *[change] * 12)).level == "warning"


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "variety_pixels": st.floats(0.6, 1.5),
                "within_pixels": st.floats(0.6, 1.5),
                "roughness": st.floats(0.5, 1.9),
                "shift": st.floats(0, 0.79),
                "saturation": st.floats(-1, 0.39),
                "accuracy_real": st.floats(0, 0.89),
                "accuracy_held_out": st.floats(0, 1),
                "margin": st.floats(-0.2, 20),
                "grad_norm_d": st.floats(1, 20),
            }
        ),
        max_size=20,
    )
)
def test_nothing_is_found_while_every_signal_is_where_healthy_runs_have_it(changes):
    assert set(levels(history(*changes))) <= {"healthy"}


def test_signals_that_are_missing_or_no_number_are_no_trouble():
    bare = [replace(m, values={"loss_d": 1.0}) for m in history(*[{}] * 12)]
    unknown = history(*[dict.fromkeys(TROUBLES["divergence"] | {"variety_pixels": 0}, math.nan)] * 12)
    assert set(levels(bare)) | set(levels(unknown)) == {"healthy"}


def test_rules_look_at_nothing_but_the_signals_that_a_checkpoint_keeps():
    class Watched(dict):
        def get(self, name, otherwise):
            looked_at.add(name)
            return super().get(name, otherwise)

    looked_at: set[str] = set()
    measured = [replace(m, values=Watched(m.values)) for m in history(*[{}] * 12)]
    for rule in RULES:
        rule.grade(measured[-1], measured[:-1])
        rule.reason(measured[-1])
    assert looked_at == set(SIGNALS)


def test_a_verdict_looks_back_no_further_than_its_history():
    measured = history(*[TROUBLES["mode_collapse"]] * 5, *[{}] * HISTORY)
    assert judge(measured[-HISTORY:]) == judge(measured)
