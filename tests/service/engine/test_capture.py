"""A cycle as a graph: it depends on its tensors alone, and reads nothing back."""

import gc
from collections import Counter

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks import gpu
from models import build
from models.layers import BatchNorm
from service.config import Config
from service.config.yaml import load_preset
from service.data.dataset import Batch
from service.engine import step as steps
from service.engine.capture import Replays
from service.engine.cost import costs
from service.engine.curriculum import Curriculum, curriculum_of
from service.engine.distributed import Workers
from service.engine.gradients import Gradients
from service.engine.state import new_state
from service.engine.step import MEASURES, Step
from tests.conftest import assert_equal
from tests.tape import Tape, Tapes

CPU = torch.device("cpu")
CYCLES = 21
OPERATIONS = {
    "dcgan": 630,
    "sagan": 2230,
    "biggan": 2500,
    "biggan-deep": 2950,
    "progan": 980,
    "stylegan": 1530,
    "mnist-pggan": 1400,
}
"""What the longest cycle of a fade dispatches in fp32, views left out; each is a kernel or more."""


def trained(config: Config) -> tuple[gpu.Training, list[dict[str, float]]]:
    """A training after CYCLES cycles, over a rung, a fade and a hold, and what each measured."""
    training = gpu.training(config, CPU)
    measured = [{k: v.item() for k, v in training.take().items()} for _ in range(CYCLES)]
    return training, measured


def with_tapes(monkeypatch: pytest.MonkeyPatch) -> list[Tapes]:
    """From now on cycles are recorded, and replayed; returns the spans' tapes."""
    made: list[Tapes] = []

    def make(device: torch.device) -> Tapes:
        made.append(Tapes(device))
        return made[-1]

    monkeypatch.setattr(steps, "can_capture", lambda device: True)
    monkeypatch.setattr(steps, "Replays", make)
    return made


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "precision"),
    [*((family, "fp32") for family in gpu.SMALL), ("biggan", "bf16"), ("stylegan", "bf16")],
)
def test_replayed_cycles_are_those_of_the_host_to_the_bit(family, precision, monkeypatch):
    """In fades, with lazy penalties, two steps of D, running averages, and rates that a rung changes.

    And none launches more than it did.
    """
    config = gpu.small(family, images=112, precision=precision)
    plain, expected = trained(config)
    made = with_tapes(monkeypatch)
    taped, measured = trained(config)
    assert [tuple(each) for each in measured] == [MEASURES] * CYCLES
    assert measured == expected
    assert taped.step.flops == plain.step.flops > 0
    assert_equal(
        {name: part for name, part in taped.state.tensors().items() if "optimizer" not in name},
        {name: part for name, part in plain.state.tensors().items() if "optimizer" not in name},
    )
    assert len(made) == 3
    assert all(tapes.replays for tapes in made)
    if precision == "fp32":
        counts = [tape.counts.total() for tapes in made for tape, _ in tapes.tapes.values()]
        assert max(counts) <= OPERATIONS[family]


class Refusing(Replays):
    """A capture that fails in the generator's step, as one does that waits for the device."""

    def __init__(self, device: torch.device):
        self._calls, self._graphs, self._refused = {}, {}, False

    def _aside(self, work):
        return work()

    def _captured(self, work):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Gradients, "norm", refuse)
            return work()


def refuse(self: Gradients) -> torch.Tensor:
    raise RuntimeError("operation not permitted when stream is capturing")


@pytest.mark.slow
def test_a_capture_that_fails_is_logged_once_and_the_training_goes_on_without_graphs(
    monkeypatch, caplog
):
    monkeypatch.setattr(steps, "can_capture", lambda device: True)
    monkeypatch.setattr(steps, "Replays", Refusing)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
    training = gpu.training(gpu.small("progan"), CPU)
    for _ in range(6):
        assert training.take()["nonfinite"] == 0
    warnings = [r for r in caplog.records if "event=not_captured" in r.getMessage()]
    assert len(warnings) == 1


# How often a cycle exchanges -----------------------------------------------------------------------


@pytest.fixture
def group():
    """A process group of 64 whose collectives do nothing; this process is its first worker."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=64)
    yield
    dist.destroy_process_group()


def exchanges(config: Config, count: int) -> Counter[str]:
    """The collectives of the first cycle among so many workers."""
    state = new_state(config, CPU)
    step = Step(config, state, Workers(0, count, CPU))
    cycle = curriculum_of(config).at(0)
    size = config.phases[0].batch // count
    side = cycle.stage.resolution
    images = np.zeros((size, side, side, config.model.channels), np.uint8)
    batches = [Batch(images, np.zeros(size, np.int64), np.arange(size), c) for c in cycle.batches()]
    with Tape(reads=True) as tape:
        step.cycle(cycle, iter(batches))
    return tape.collectives


def in_groups(preset: str, norm_group: int) -> Config:
    """A narrow network of the preset at 64 px, in batches of 256, for up to 64 workers."""
    values = load_preset(preset)
    values["model"] |= {"width": 8, "resolution": 64}
    if "attention" in values["model"]:
        values["model"]["attention"] = 32
    values["training"] |= {"norm_group": norm_group}
    values["phases"] = [{"resolution": 64, "hold_images": 256, "batch": 256}]
    return Config(**values | {"scale": {"workers": "1:64"}})


@pytest.mark.slow
@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("preset", ["biggan128", "biggan-deep128", "dcgan64", "sagan128"])
def test_workers_with_whole_groups_exchange_gradients_once_a_step_and_nothing_else(preset):
    config = in_groups(preset, 4)
    steps_d = config.training.d_steps
    assert exchanges(config, 64) == {"allreduce_": steps_d + 1}
    shared = in_groups(preset, 16)  # by four workers
    norms = [
        sum(isinstance(layer, BatchNorm) for layer in network.modules())
        for network in build(config.model.family, **config.model_settings)
    ]
    forwards = (steps_d + 1) * norms[0] + (2 * steps_d + 1) * norms[1]
    backwards = norms[0] + (2 * steps_d + 1) * norms[1]
    assert exchanges(shared, 64) == {
        "allgather_": forwards,
        "allreduce_": steps_d + 1 + backwards,
    }


@pytest.mark.slow
@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("preset", ["biggan128", "dcgan64"])
def test_the_plan_counts_the_exchanges_that_a_cycle_makes(preset):
    config = in_groups(preset, 16)
    span = Curriculum(config.phases, config.training.d_steps).spans[0]
    assert next(costs(config, span, [64])).exchanges == exchanges(config, 64).total()


@pytest.mark.slow
@pytest.mark.usefixtures("group")
def test_changes_of_phase_leave_nothing_behind(tmp_path):
    """Fifty of them: as many tensors and process groups as after two."""
    values = load_preset("biggan-fashion")
    values["model"] |= {"width": 4, "resolution": 16, "attention": 8, "latents": 12}
    values["training"] |= {"norm_group": 2}
    values["phases"] = [{"resolution": 16, "hold_images": 64, "batch": 64} for _ in range(52)]
    config = Config(**values | {"scale": {"workers": 64}})
    curriculum = Curriculum(config.phases, 1)
    step = Step(config, new_state(config, CPU), Workers(0, 64, CPU))
    held = []
    for number, cycle in enumerate(curriculum.cycles(0, curriculum.end)):
        images = np.zeros((1, 16, 16, 1), np.uint8)
        batch = Batch(images, np.zeros(1, np.int64), np.arange(1), cycle.start)
        step.cycle(cycle, iter([batch]))
        if number in (1, 51):
            gc.collect()
            tensors = sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())
            held.append((tensors, len(dist.distributed_c10d._pg_map)))
    assert held[0] == held[1]
