"""Laws 2 and 3: the number of workers changes only the speed; a resumed run is the same run."""

from pathlib import Path

import pytest
import torch

from service.config import Config
from service.data.dataset import Batch
from service.engine import distributed
from service.engine.curriculum import Curriculum
from service.engine.state import TrainState, new_state
from service.engine.step import MEASURES
from service.run import checkpoint
from service.run.checkpoint import Checkpointer, Keep
from service.storage import open_storage
from service.storage.lock import RunLock
from service.training.context import Context
from tests.conftest import assert_equal, tiny_config, tiny_values
from tests.workers import work_together

CYCLES = 6
NO_GRADIENT = 1e-3
SHORT_PHASES = [
    {"resolution": 8, "hold_images": 16, "batch": 16},
    {"resolution": 16, "fade_images": 32, "hold_images": 16, "batch": 16},
    {"resolution": 32, "fade_images": 16, "hold_images": 16, "batch": 16},
]


class Watched:
    """The batches, and the rows of the index that were in them."""

    def __init__(self, batches):
        self.batches = batches
        self.rows: list[list[int]] = []

    def __next__(self) -> Batch:
        batch = next(self.batches)
        self.rows.append(batch.rows.tolist())
        return batch

    def __iter__(self):
        return self


def advance(config: Config, state: TrainState, cycles: int):
    """Take `cycles` cycles; returns the rows of every batch and the measures of every cycle."""
    context = Context(config, distributed.join(), 0, None)
    step = context.step(config, state)
    curriculum = context.curriculum
    measures = []

    def planned():
        clock = start
        for _ in range(cycles):
            cycle = curriculum.at(clock)
            yield cycle
            clock = cycle.end

    start = state.clock
    with context.feeders, context.load(planned(), 0) as loader:
        batches = Watched(loader)
        for cycle in planned():
            table = torch.stack([*step.cycle(cycle, batches).values()])
            measures.append(context.workers.mean(table))
    return batches.rows, torch.stack(measures)


def work(values: dict, cycles: int, out: str) -> None:
    config = Config(**values)
    workers = distributed.join()
    torch.save(run_here(config, cycles), f"{out}/{workers.count}-{workers.index}.pt")


def run_here(config: Config, cycles: int) -> dict:
    """What this process, a worker or alone, had after its cycles."""
    state = new_state(config, torch.device("cpu"))
    rows, measures = advance(config, state, cycles)
    return {"rows": rows, "measures": measures, "networks": state.tensors()}


def train_with(count: int, config: Config, cycles: int, out: Path) -> list[dict]:
    """What each of `count` workers, processes of their own, had after its cycles."""
    out.mkdir(exist_ok=True)
    work_together(work, count, out / f"store-{count}", config.model_dump(), cycles, str(out))
    return [torch.load(out / f"{count}-{index}.pt") for index in range(count)]


def networks(result: dict) -> dict[str, torch.Tensor]:
    return {
        f"{network}.{name}": value
        for network in ("generator", "discriminator", "ema")
        for name, value in result["networks"][network].items()
    }


def assert_near(
    actual: torch.Tensor,
    expected: torch.Tensor,
    tolerance: float,
    what: str,
    floor: float = NO_GRADIENT,
) -> None:
    """By the tensor's norm; biases before a batch norm have no gradient but rounding, so a floor."""
    distance = torch.linalg.vector_norm(actual - expected)
    assert distance <= tolerance * max(torch.linalg.vector_norm(expected), floor), what


@pytest.mark.slow
@pytest.mark.parametrize(
    ("norm_group", "others"),
    [
        (None, [(2, "auto"), (4, "auto")]),  # all workers measure together
        # two groups of 8: on one worker in turn; one on each of two; each over two of four
        (8, [(1, 8), (2, "auto"), (4, "auto")]),
        # four groups of 4: on two workers both of a worker's at once, or in turn
        (4, [(2, "auto"), (2, 4)]),
    ],
)
def test_law_2_workers_and_device_batches_change_no_step_in_float64(
    digits, tmp_path, norm_group, others
):
    training = {"precision": "fp64", "d_steps": 1, "norm_group": norm_group}
    values = tiny_values(digits, tmp_path, training=training, scale={"workers": "1:4"})
    values["phases"] = SHORT_PHASES
    config = Config(**values)
    curriculum = Curriculum(config.phases, 1)
    stages = {cycle.stage.resolution for cycle in list(curriculum.cycles(0, 10**4))[:CYCLES]}
    assert stages == {8, 16, 32}
    alone = run_here(config, CYCLES)
    assert len(alone["rows"]) == CYCLES
    for i, (count, device_batch) in enumerate(others):
        scale = config.scale.model_copy(update={"device_batch": device_batch})
        other = config.model_copy(update={"scale": scale})
        shares = (
            [run_here(other, CYCLES)]
            if count == 1
            else train_with(count, other, CYCLES, tmp_path / str(i))
        )
        for batch, rows in enumerate(alone["rows"]):
            dealt = [share["rows"][batch] for share in shares]
            assert [row for together in zip(*dealt, strict=True) for row in together] == rows
        for share in shares:
            for cycle in range(CYCLES):
                for i, name in enumerate(MEASURES):
                    assert_near(
                        share["measures"][cycle][i], alone["measures"][cycle][i], 1e-8, f"{cycle} {name}"
                    )
            for name, tensor in networks(share).items():
                assert_near(tensor, networks(alone)[name], 1e-8, name)


# What else workers could disagree on: batch norm in D differentiated twice (the logits have no other
# use for its place), over groups that two workers share; stddev groups, whole and shared; penalties at
# images between, styles mixed, noise, averages of w.
FAMILIES = {
    "dcgan with lazy R1": (
        {"family": "dcgan", "width": 4},
        {"loss": "non-saturating", "r1": 1.0, "r1_every": 2, "norm_group": 4},
    ),
    "progan with gradient penalty": (
        {"family": "progan", "width": 8},
        {"loss": "wgan", "gradient_penalty": 10, "drift": 1e-3, "reset_adam": True},
    ),
    "stylegan": (
        {"family": "stylegan", "width": 8, "mapping_layers": 2},
        {
            "loss": "non-saturating",
            "r1": 2.0,
            "style_mixing": 0.9,
            "adam_beta2": 0.99,
            "labels": "data",
        },
    ),
    "dcgan with pairs, R1, R2 and DiffAugment": (
        {"family": "dcgan", "width": 4},
        {
            "loss": "relativistic",
            "augment": "diffaugment",
            "r1": {"from": 1.0, "to": 0.1, "images": 96},
            "r2": 0.5,
            "r2_every": 2,
            "lr_generator": {"from": 1e-3, "to": 1e-4, "images": 64, "shape": "cosine"},
            "adam_beta2": {"from": 0.9, "to": 0.99, "images": 96},
            "ema_half_life_images": {"from": 0, "to": 500, "images": 96},
        },
    ),
    "progan with ada and rough slopes": (
        {"family": "progan", "width": 8},
        {
            "loss": "non-saturating",
            "r1": 1.0,
            "r2": 1.0,
            "slope_sigma": 0.1,
            "augment": "ada",
            "augment_images": 64,
        },
    ),
    "sagan with orthogonal regularisation": (
        {"family": "sagan", "width": 4, "attention": 8},
        {"loss": "lsgan", "gradient_penalty": 1, "gradient_penalty_every": 3, "orthogonal": 1e-4},
    ),
}
SHARED_BY_TWO = ("dcgan with lazy R1", "progan with gradient penalty")
"""Here four workers hold halves of groups of 4; elsewhere two hold whole groups."""
FEW_CYCLES = 10


def family_config(name: str, digits: Path, run: Path, precision: str) -> Config:
    """A family of FAMILIES on the way 8→16 px, in batches of 8."""
    model, training = FAMILIES[name]
    phases = [
        {"resolution": 8, "hold_images": 32, "batch": 8},
        {"resolution": 16, "fade_images": 32, "hold_images": 48, "batch": 8},
    ]
    common = {"resolution": 16, "channels": 1, "classes": 10, "latents": 16}
    training = {"precision": precision, "loss": "hinge", **training}
    values = tiny_values(digits, run, training=training, scale={"workers": "1:4"})
    return Config(**(values | {"model": common | model, "phases": phases}))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_law_2_holds_for_every_regulariser_and_every_layer_that_looks_at_the_batch(
    name, digits, tmp_path
):
    config = family_config(name, digits, tmp_path, "fp64")
    alone = run_here(config, FEW_CYCLES)
    penalties = alone["measures"][:, MEASURES.index("penalty")]
    assert (penalties > 0).sum() >= FEW_CYCLES // 3
    for share in train_with(4 if name in SHARED_BY_TWO else 2, config, FEW_CYCLES, tmp_path):
        for cycle in range(FEW_CYCLES):
            for i, measure in enumerate(MEASURES):
                assert_near(
                    share["measures"][cycle][i], alone["measures"][cycle][i], 1e-7, f"{cycle} {measure}"
                )
        for key, tensor in networks(share).items():
            # StyleGAN's first instance norm divides a constant's rounding by √1e-8
            assert_near(tensor, networks(alone)[key], 1e-6, key, floor=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "progan with gradient penalty",
        "stylegan",
        "dcgan with pairs, R1, R2 and DiffAugment",
        "progan with ada and rough slopes",
    ],
)
def test_law_3_holds_with_penalties_noise_and_adam_reset_where_a_rung_begins(name, digits, tmp_path):
    torch.set_num_threads(1)
    config = family_config(name, digits, tmp_path / "run", "fp32")
    whole = new_state(config, torch.device("cpu"))
    _, measures = advance(config, whole, 10)
    for stop in (4, 7):  # where the rung begins, and in the middle of its fade
        first = new_state(config, torch.device("cpu"))
        _, first_measures = advance(config, first, stop)
        resumed = new_state(config, torch.device("cpu"))
        resumed.load(checkpoint.copy_to_cpu(first.tensors()), first.plain())
        _, last_measures = advance(config, resumed, 10 - stop)
        assert torch.equal(torch.cat([first_measures, last_measures]), measures)
        assert_equal(resumed.tensors(), whole.tensors())


@pytest.mark.slow
def test_law_2_in_fp32_the_first_cycle_agrees_to_rounding(digits, tmp_path):
    config = tiny_config(digits, tmp_path, training={"precision": "fp32"})
    alone = run_here(config, 1)
    for share in train_with(2, config, 1, tmp_path):
        for i, name in enumerate(MEASURES):
            assert_near(share["measures"][0][i], alone["measures"][0][i], 1e-5, name)


@pytest.mark.slow
@pytest.mark.parametrize("d_steps", [1, 2])
def test_law_3_a_run_stopped_in_the_middle_of_a_fade_goes_on_bit_for_bit(digits, tmp_path, d_steps):
    torch.set_num_threads(1)
    config = tiny_config(digits, tmp_path / "run", training={"d_steps": d_steps})
    whole = new_state(config, torch.device("cpu"))
    rows, measures = advance(config, whole, 20)

    stopped = new_state(config, torch.device("cpu"))
    first_rows, first_measures = advance(config, stopped, 9)
    stage = Curriculum(config.phases, d_steps).at(stopped.clock).stage
    assert 0 < stage.alpha < 1
    storage = open_storage(config.run.dir)
    lock = RunLock(storage)
    saver = Checkpointer(storage, lock.acquire(), Keep(3), {})
    saver.save(stopped)
    saver.wait()
    lock.release()

    resumed = new_state(config, torch.device("cpu"))
    checkpoint.resume(storage, resumed)
    last_rows, last_measures = advance(config, resumed, 11)
    assert first_rows + last_rows == rows
    assert torch.equal(torch.cat([first_measures, last_measures]), measures)
    assert_equal(resumed.tensors(), whole.tensors())
    assert resumed.plain() == whole.plain()
