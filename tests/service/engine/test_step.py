"""One cycle at a time: when penalties are due, in which precision, and what a new rung forgets."""

from pathlib import Path
from typing import Any

import pytest
import torch

from service.config import Config
from service.engine import distributed
from service.engine.state import TrainState, new_state
from service.engine.step import MEASURES, Step
from service.training.session import Session
from tests.conftest import tiny_values

PHASES = [
    {"resolution": 8, "hold_images": 64, "batch": 16},
    {"resolution": 16, "fade_images": 32, "hold_images": 64, "batch": 16},
]


def config_of(digits: Path, **training: Any) -> Config:
    values = tiny_values(digits, "unused", training={"loss": "non-saturating", **training})
    model = {"family": "progan", "resolution": 16, "channels": 1, "width": 8, "latents": 8}
    return Config(**(values | {"model": model, "phases": PHASES}))


def take(config: Config, cycles: int) -> tuple[TrainState, list[dict[str, float]]]:
    """The state after so many cycles, and what each measured."""
    session = Session(config, distributed.join(), None)
    state = new_state(config, torch.device("cpu"))
    step = Step(config, state, session.workers)
    planned = list(session.curriculum.cycles(0, 10**4))[:cycles]
    with session.feeders, session.load(planned, 0) as batches:
        measured = [step.cycle(cycle, batches).tolist() for cycle in planned]
    return state, [dict(zip(MEASURES, values, strict=True)) for values in measured]


def test_a_lazy_penalty_comes_every_so_many_steps_with_so_many_times_the_weight(digits):
    _, always = take(config_of(digits, r1=0.5), 1)
    _, lazy = take(config_of(digits, r1=0.5, r1_every=3), 8)
    # cycles 4 and 6 begin the fade and the hold, where counting begins anew
    due = [measures["penalty"] > 0 for measures in lazy]
    assert due == [True, False, False, True, True, False, True, False]
    assert lazy[0]["penalty"] == pytest.approx(3 * always[0]["penalty"], rel=1e-6)


def test_penalties_are_taken_in_full_precision_whatever_the_rest_is_in(digits):
    """The first one, on real images and first weights, knows nothing of the precision."""
    penalties = [
        take(config_of(digits, r1=0.5, precision=precision), 1)[1][0] for precision in ("fp32", "bf16")
    ]
    assert penalties[0]["penalty"] == penalties[1]["penalty"]
    assert penalties[0]["logit_real"] != penalties[1]["logit_real"]


def test_penalties_of_both_kinds_add_up(digits):
    r1, gp, both = (
        take(config_of(digits, **training), 1)[1][0]["penalty"]
        for training in (
            {"r1": 0.5},
            {"gradient_penalty": 2},
            {"r1": 0.5, "gradient_penalty": 2},
        )
    )
    assert both == pytest.approx(r1 + gp, rel=1e-5)


@pytest.mark.parametrize("reset", [True, False])
def test_adam_forgets_where_a_rung_begins_if_it_is_told_to(reset, digits):
    state, _ = take(config_of(digits, reset_adam=reset), 6)
    steps = {int(entry["step"]) for entry in state.optimizer_g.state.values()}
    assert max(steps) == (2 if reset else 6)
    state, _ = take(config_of(digits, reset_adam=reset), 7)  # the hold of a rung is no new rung
    steps = {int(entry["step"]) for entry in state.optimizer_g.state.values()}
    assert max(steps) == (3 if reset else 7)


def test_drift_and_orthogonal_regularisation_change_what_is_learnt(digits):
    plain, _ = take(config_of(digits), 2)
    drifted, _ = take(config_of(digits, drift=10.0), 2)
    orthogonal, _ = take(config_of(digits, orthogonal=1.0), 2)

    def moved(network: str, other: TrainState) -> bool:
        pairs = zip(
            getattr(plain, network).parameters(), getattr(other, network).parameters(), strict=True
        )
        return any(not torch.equal(a, b) for a, b in pairs)

    assert moved("discriminator", drifted)
    assert moved("generator", orthogonal)
