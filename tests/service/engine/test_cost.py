"""What `plan` says a cycle costs is what a real cycle takes."""

import pytest
import torch

from benchmarks import gpu
from service.config import Config
from service.engine.cost import costs
from service.engine.curriculum import curriculum_of
from service.engine.distributed import Workers
from service.engine.flops import Flops
from service.engine.state import networks, new_state
from service.engine.step import Step
from tests.tape import Tape

CPU = torch.device("cpu")


def first_span(config: Config):
    return curriculum_of(config).spans[0]


def taken(config: Config) -> tuple[int, int]:
    """Operations that launch something, and FLOP, of a real cycle with all penalties."""
    tape, flops = recorded(config)
    makes_only = sum(tape.counts[name] for name in ("empty", "empty_like", "empty_strided"))
    return tape.counts.total() - makes_only, flops


def recorded(config: Config) -> tuple[Tape, int]:
    """The second cycle on tape, and its FLOP."""
    once = {"r1_every": 1, "gradient_penalty_every": 1}
    config = config.model_copy(update={"training": config.training.model_copy(update=once)})
    state = new_state(config, CPU)
    step = Step(config, state, Workers(0, 1, CPU), lambda span: config.scale.most_at_once)
    cycles, data = (
        curriculum_of(config).cycles(0, 10**6),
        gpu.batches(config),
    )
    step.cycle(next(cycles), data)
    with Tape(reads=True) as tape, Flops() as flops:
        step.cycle(next(cycles), data)
    return tape, flops.total


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", gpu.SMALL)
def test_every_family_costs_what_it_takes(family, precision):
    config = gpu.small(family, precision=precision)
    (cost,) = costs(config, first_span(config), [1])
    launches, flops = taken(config)
    assert (cost.launches, cost.exchanges) == (pytest.approx(launches, rel=0.02), 0)
    assert cost.flops == flops


@pytest.mark.slow
@pytest.mark.parametrize("device_batch", [8, 4, 2])
def test_portions_cost_as_much_again(device_batch):
    config = gpu.small("dcgan", norm_group=2)
    values = config.model_dump() | {"scale": {"workers": 1, "device_batch": device_batch}}
    config = Config(**values)
    (cost,) = costs(config, first_span(config), [1])
    launches, flops = taken(config)
    assert (cost.launches, cost.exchanges) == (pytest.approx(launches, rel=0.02), 0)
    assert cost.flops == flops


@pytest.mark.slow
def test_more_workers_share_the_operations_and_exchange():
    config = Config(**(gpu.small("progan").model_dump() | {"scale": {"workers": "1:4"}}))
    one, two, four = costs(config, first_span(config), [1, 2, 4])
    assert (one.exchanges, two.exchanges) == (0, four.exchanges)
    assert two.flops == pytest.approx(one.flops / 2, rel=0.05)
    assert four.flops == pytest.approx(one.flops / 4, rel=0.05)


@pytest.mark.slow
def test_memory_is_that_of_the_weights_and_as_much_again_for_each_image():
    def peak(batch: int) -> int:
        values = gpu.small("biggan").model_dump() | {"scale": {"workers": 1}}
        values["phases"] = [{"resolution": 16, "hold_images": 1024, "batch": batch}]
        config = Config(**values)
        (cost,) = costs(config, first_span(config), [1])
        return cost.peak_bytes

    few, more, many = peak(64), peak(128), peak(256)
    assert many - more == pytest.approx(2 * (more - few), rel=0.01)
    generator, discriminator = networks(gpu.small("biggan"), CPU)
    g, d = (4 * sum(p.numel() for p in network.parameters()) for network in (generator, discriminator))
    assert 2 * few - more > 5 * g + 4 * d  # weights, gradients, two averages of Adam, and the EMA


@pytest.mark.slow
@pytest.mark.parametrize("family", ["biggan", "sagan"])
def test_portions_share_the_weights_over_their_singular_values(family):
    """More portions launch more of everything, but divide no weight again, and widen no kernel again."""
    scaled = []
    for device_batch in (4, 2):
        config = gpu.small(family, norm_group=2)
        values = config.model_dump() | {"scale": {"workers": 1, "device_batch": device_batch}}
        counts = recorded(Config(**values))[0].counts
        scaled.append((counts["dot"], counts["constant_pad_nd"]))
    assert scaled[0] == scaled[1] > (0, 0)
