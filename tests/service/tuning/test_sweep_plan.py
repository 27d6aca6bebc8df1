"""The plan of a sweep, kept in its folder: the same goes on, another is refused, damage is named."""

import dataclasses
import json

import pytest

from service.errors import DataError, UsageError
from service.run.directory import SWEEP_KEY
from service.tuning.plan import Plan, Search, settle_plan
from service.tuning.space import parse_space
from tests.conftest import tiny_config

SPACE = {"training.drift": {"grid": [0.0, 1.0]}}
SEARCH = Search("grid", 2, 0, "none", 1, 3)


@pytest.fixture
def plan(tmp_path) -> Plan:
    config = tiny_config("unused", tmp_path / "sweep")
    return Plan(config, parse_space(SPACE, config, "space.yaml"), SEARCH)


def test_the_same_plan_again_is_the_same_sweep(plan):
    key = settle_plan(plan)
    kept = plan.storage.get(SWEEP_KEY)
    assert settle_plan(plan) == key
    assert plan.storage.get(SWEEP_KEY) == kept


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, "search seed: the sweep was started with 0, now it is 1"),
        ({"scheduler": "asha"}, "search scheduler: the sweep was started with 'none', now it is 'asha'"),
        ({"grace_images": 9}, "search grace_images: the sweep was started with 1, now it is 9"),
    ],
)
def test_another_search_is_refused_naming_both_values(plan, changes, words):
    settle_plan(plan)
    with pytest.raises(UsageError, match=words):
        settle_plan(dataclasses.replace(plan, search=dataclasses.replace(SEARCH, **changes)))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda sweep: b"", "damaged .*; restore it from a copy, or choose another --dir$"),
        (lambda sweep: b"{", "damaged "),
        (lambda sweep: b"[]", "damaged "),
        (lambda sweep: b"\0", "damaged "),
        (lambda sweep: b"{}", "has no version, but this service reads version 2"),
        (lambda sweep: spoiled(sweep, version=1), "has version 1, but this service reads version 2"),
        (lambda sweep: spoiled(sweep, more=1), r"damaged \(more: Extra inputs are not permitted\)"),
        (lambda sweep: spoiled(sweep, key=""), r"damaged \(key: String should have at least 1"),
        (lambda sweep: spoiled(sweep, end=-1), r"damaged \(end: Input should be greater than"),
        (lambda sweep: spoiled(sweep, end="9"), r"damaged \(end: Input should be a valid integer"),
        (lambda sweep: spoiled(sweep, config=[]), r"damaged \(config: Input should be an object"),
        (
            lambda sweep: spoiled(sweep, search=sweep["search"] | {"method": "best"}),
            r"damaged \(search\.method: Input should be 'random', 'grid' or 'optuna'",
        ),
        (
            lambda sweep: spoiled(sweep, search=sweep["search"] | {"trials": -1}),
            r"damaged \(search\.trials: Input should be greater than",
        ),
    ],
)
def test_a_plan_that_is_damaged_or_of_another_version_is_named(plan, spoil, words):
    settle_plan(plan)
    spoilt = spoil(json.loads(plan.storage.get(SWEEP_KEY)))
    plan.storage.put(SWEEP_KEY, spoilt)
    with pytest.raises(DataError, match=rf"sweep/sweep\.json: {words}"):
        settle_plan(plan)
    assert plan.storage.get(SWEEP_KEY) == spoilt


def spoiled(sweep: dict, **changes: object) -> bytes:
    return json.dumps(sweep | changes).encode()
