"""What `run.freeze` names stays as it is up to its clock, in whole cycles, and moves from then on."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from service.config import Config
from service.driver.preflight import check_networks
from service.engine import distributed
from service.engine.state import TrainState, new_state
from service.engine.step import Step
from service.errors import UsageError
from service.run import checkpoint
from service.training.context import Context
from tests.conftest import assert_equal, tiny_config, tiny_values

CYCLE = 32
PHASES = [
    {"resolution": 16, "hold_images": 64, "batch": 16},
    {"resolution": 32, "fade_images": 96, "hold_images": 64, "batch": 16},
]


def config_of(digits: Path, freeze: dict[str, int]) -> Config:
    """A BigGAN of two rungs; a cycle is two batches of 16 images."""
    values = tiny_values(digits, "unused", run={"freeze": freeze}, training={"d_steps": 2})
    return Config(**(values | {"phases": PHASES}))


def advance(config: Config, state: TrainState, end: int) -> list[dict[str, torch.Tensor]]:
    """Train to the clock; both networks' parameters before each cycle, and after the last."""
    context = Context(config, distributed.join(), 0, None)
    step = Step(config, state, context.workers)
    planned = list(context.curriculum.cycles(state.clock, end))
    seen = [parameters(state)]
    with context.feeders, context.load(planned, 0) as batches:
        for cycle in planned:
            step.cycle(cycle, batches)
            seen.append(parameters(state))
    return seen


def parameters(state: TrainState) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": parameter.detach().clone()
        for part in ("generator", "discriminator")
        for name, parameter in getattr(state, part).named_parameters()
    }


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def test_parts_stay_up_to_their_clock_and_move_from_the_next_cycle_on(digits):
    freeze = {"generator.dense": 40, "discriminator.tail": 64}  # 40 lies in a cycle, 64 between two
    config = config_of(digits, freeze)
    seen = advance(config, new_state(config, torch.device("cpu")), 4 * CYCLE)
    for number, (before, after) in enumerate(pairwise(seen)):
        changed = moved(before, after)
        assert any(name.startswith("discriminator.heads.") for name in changed)
        assert any(name.startswith("generator.dense.") for name in changed) == (number >= 2)
        assert any(name.startswith("discriminator.tail.") for name in changed) == (number >= 2)


@pytest.mark.slow
def test_the_first_blocks_are_those_nearest_the_image_at_each_rung(digits):
    config = config_of(digits, {"discriminator.first.2": 10**6})
    seen = advance(config, new_state(config, torch.device("cpu")), 8 * CYCLE)
    low = {name for name in moved(seen[0], seen[2]) if name.startswith("discriminator.")}
    assert not any(name.startswith(("discriminator.heads.", "discriminator.tail.0.")) for name in low)
    assert any(name.startswith("discriminator.tail.1.") for name in low)
    high = {name for name in moved(seen[2], seen[-1]) if name.startswith("discriminator.")}
    nearest = ("discriminator.heads.", "discriminator.descents.32.0.")  # attention: at 16 px
    assert not any(name.startswith(nearest) for name in high)
    assert any(name.startswith("discriminator.descents.32.1.") for name in high)
    assert any(name.startswith("discriminator.tail.0.") for name in high)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [CYCLE, 3 * CYCLE])
def test_a_resumed_run_is_the_run_that_was_never_stopped(digits, stop):
    config = config_of(digits, {"generator.embedding": 2 * CYCLE, "discriminator.first.1": 3 * CYCLE})
    device = torch.device("cpu")
    whole, first, second = (new_state(config, device) for _ in range(3))
    advance(config, whole, 5 * CYCLE)
    advance(config, first, stop)
    second.load(checkpoint.copy_to_cpu(first.tensors()), first.plain())
    advance(config, second, 5 * CYCLE)
    assert_equal(second.tensors(), whole.tensors())


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        ({"generator.stem": 16}, r"run\.freeze: no module 'stem'.*parts are .*dense.*; name other"),
        ({"discriminator.first.0": 16}, r"no module 'first\.0'.*heads\.16, heads\.8"),
        ({"discriminator.first.0": 16}, r"first\.1 \(the block nearest the image\), first\.2"),
        ({"discriminator.first.99": 16}, r"first\.99: there are 5 blocks, first\.1 to first\.5; name"),
        ({"discriminator.first.5": 16, "discriminator.projection": 16}, "nothing of the discriminator"),
    ],
)
def test_what_no_network_has_or_leaves_nothing_to_train_is_refused(digits, tmp_path, freeze, message):
    with pytest.raises(UsageError, match=message):
        check_networks(tiny_config(digits, tmp_path, run={"freeze": freeze}))


def test_a_name_of_no_network_is_refused_with_the_form(digits, tmp_path):
    with pytest.raises(ValueError, match=r"tail\.0' names no part of a network; write generator\.PART"):
        tiny_config(digits, tmp_path, run={"freeze": {"tail.0": 16}})
