"""One cycle at a time: when penalties are due, in which precision, and what a new rung forgets."""

import dataclasses
import itertools
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from service.config import Config
from service.data.index import NO_LABEL, read_index, write_index
from service.engine import distributed
from service.engine.curriculum import curriculum_of
from service.engine.inputs import Sources
from service.engine.state import TrainState, new_state
from service.engine.step import MEASURES, Step
from service.storage import open_storage
from service.training.context import Context
from tests.conftest import ROOT, tiny_values

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
    context = Context(config, distributed.join(), 0, None)
    state = new_state(config, torch.device("cpu"))
    step = Step(config, state, context.workers)
    planned = list(context.curriculum.cycles(0, 10**4))[:cycles]
    with context.feeders, context.load(planned, 0) as batches:
        measures = [step.cycle(cycle, batches) for cycle in planned]
    return state, [{name: value.item() for name, value in each.items()} for each in measures]


def test_measures_travel_by_their_names(digits):
    _, (measures,) = take(config_of(digits), 1)
    assert tuple(measures) == MEASURES
    assert measures["margin"] == pytest.approx(measures["logit_real"] - measures["logit_fake"])


def test_a_batch_for_another_clock_is_refused(digits):
    """The loader and the loop walk iterators of their own; a step would train on the wrong samples."""
    config = config_of(digits)
    context = Context(config, distributed.join(), 0, None)
    step = Step(config, new_state(config, torch.device("cpu")), context.workers)
    first, second = list(context.curriculum.cycles(0, 32))
    with (
        context.feeders,
        context.load([second], 0) as batches,
        pytest.raises(RuntimeError, match="the batch for clock 16, but it is 0"),
    ):
        step.cycle(first, batches)


def test_schedules_are_followed_cycle_by_cycle(digits):
    half, whole = ({"from": 2e-3, "to": 1e-3, "images": images} for images in (32, 64))
    config = config_of(digits, lr_generator=half, r1=whole, adam_beta2={**whole, "from": 0.9, "to": 0.5})
    state, measured = take(config, 3)
    assert (state.optimizer_g.rate, state.optimizer_d.rate) == (1e-3, config.training.lr_discriminator)
    assert state.optimizer_g.betas == (0.0, pytest.approx(0.7))
    fixed = take(config_of(digits, lr_generator=2e-3, r1=2e-3, adam_beta2=0.9), 1)[1][0]["penalty"]
    assert measured[0]["penalty"] == fixed


@pytest.mark.parametrize(("target", "direction"), [(0.01, 1), (0.99, -1)])
def test_the_chance_of_augmentation_goes_towards_the_target_and_is_measured(digits, target, direction):
    config = config_of(digits, augment="ada", augment_target=target, augment_images=160)
    state, measured = take(config, 4)
    told = [each["augment_p"] for each in measured]
    moves = [after - before for before, after in itertools.pairwise([*told, state.augment_p.item()])]
    signs = [each["accuracy_real"] * 2 - 1 - target for each in measured]
    for before, move, sign in zip(told, moves, signs, strict=True):
        expected = min(1, max(0, before + math.copysign(0.1, sign)))
        assert before + move == pytest.approx(expected, abs=1e-6)
    assert told[0] == 0
    assert state.plain().augment_p == state.augment_p.item()
    assert (max(told) > 0) == (direction > 0)


def test_a_paired_loss_shows_a_batch_to_each_step_with_the_labels_of_the_real_images(digits):
    config = config_of(digits, loss="relativistic", d_steps=2)
    config = config.model_copy(update={"model": config.model.model_copy(update={"classes": 10})})
    curriculum = curriculum_of(config)
    first, second = list(curriculum.cycles(0, 96))
    assert (list(first.batches()), list(first.steps)) == ([0, 16, 32], [0, 16])
    assert second.start == 48
    context = Context(config, distributed.join(), 0, None)
    with context.feeders, context.load([first], 0) as batches:
        inputs = list(Sources(config, 0, 0, context.workers).cycle(first, batches, 0))
    reals = [each["images"] for each in inputs[:3]]
    assert all(len(images) == 16 for images in reals)
    for each in inputs[:3]:
        assert each["labels"].tolist() == each["real_labels"].tolist()


@pytest.mark.parametrize("labels", ["even", "data"])
def test_generated_images_have_their_classes_as_often_as_is_said(digits, tmp_path, labels):
    """Of data with hardly any class but 3: three quarters of the digits have lost their label."""
    index = read_index(open_storage(str(digits)))
    rows = index.rows(held_out=False)
    kept = np.where((index.label == 3) | (np.arange(len(index)) % 40 == 0), index.label, NO_LABEL)
    known = kept[rows][kept[rows] != NO_LABEL]
    expected = np.bincount(known, minlength=10) if labels == "data" else np.ones(10)
    write_index(open_storage(str(tmp_path)), dataclasses.replace(index, label=kept))
    config = config_of(digits, labels=labels)
    data = config.data.model_copy(update={"index_url": str(tmp_path)})
    model = config.model.model_copy(update={"classes": 10})
    config = config.model_copy(update={"data": data, "model": model})
    context = Context(config, distributed.join(), 0, None)
    with context.feeders:
        sources = context.step(config, new_state(config, torch.device("cpu"))).sources
    drawn = sources.drawn(sources.draws_g, np.arange(20_000), 0)["labels"]
    counts = np.bincount(drawn, minlength=10)
    assert counts / 20_000 == pytest.approx(expected / expected.sum(), abs=0.015)


@pytest.mark.slow
def test_a_lazy_penalty_comes_every_so_many_steps_with_so_many_times_the_weight(digits):
    _, always = take(config_of(digits, r1=0.5), 1)
    _, lazy = take(config_of(digits, r1=0.5, r1_every=3), 8)
    # cycles 4 and 6 begin the fade and the hold, where counting begins anew
    due = [measures["penalty"] > 0 for measures in lazy]
    assert due == [True, False, False, True, True, False, True, False]
    assert lazy[0]["penalty"] == pytest.approx(3 * always[0]["penalty"], rel=1e-6)


@pytest.mark.slow
def test_operations_are_counted_for_each_kind_of_cycle_and_added_up(digits):
    config = config_of(digits, r1=0.5, r1_every=3)
    context = Context(config, distributed.join(), 0, None)
    step = Step(config, new_state(config, torch.device("cpu")), context.workers)
    planned = list(context.curriculum.cycles(0, 64))
    taken = []
    with context.feeders, context.load(planned, 0) as batches:
        for cycle in planned:
            before = step.flops
            step.cycle(cycle, batches)
            taken.append(step.flops - before)
    *uncounted, others, due = taken  # the second cycle of a kind counts for the first, too
    assert uncounted == [0, 0]
    assert 0 < others < due < 3 * others


@pytest.mark.slow
def test_penalties_are_taken_in_full_precision_whatever_the_rest_is_in(digits):
    """The first one, on real images and first weights, knows nothing of the precision."""
    penalties = [
        take(config_of(digits, r1=0.5, precision=precision), 1)[1][0] for precision in ("fp32", "bf16")
    ]
    assert penalties[0]["penalty"] == penalties[1]["penalty"]
    assert penalties[0]["logit_real"] != penalties[1]["logit_real"]


@pytest.mark.slow
def test_cycles_import_neither_a_compiler_nor_pandas(digits):
    """Their imports would be a good part of a worker's start, at every start."""
    program = f"""
import sys
from tests.service.engine.test_step import config_of, take
take(config_of({str(digits)!r}, r1=0.5, gradient_penalty=2), 3)
print({{"torch._dynamo", "pandas"}} & {{*sys.modules}})
"""
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["set()"]


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("reset", [True, False])
def test_adam_forgets_where_a_fade_begins_and_ends_if_it_is_told_to(reset, digits):
    state, _ = take(config_of(digits, reset_adam=reset), 6)
    steps = {int(entry["step"]) for entry in state.optimizer_g.state.values()}
    assert max(steps) == (2 if reset else 6)
    state, _ = take(config_of(digits, reset_adam=reset), 7)  # and where its fade ends
    steps = {int(entry["step"]) for entry in state.optimizer_g.state.values()}
    assert max(steps) == (1 if reset else 7)


@pytest.mark.slow
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
