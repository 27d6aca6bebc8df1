"""Settings that change with the clock: where they are at each, and what is refused."""

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from service.config import Config
from service.config.amendments import amend, resolve
from service.config.schedule import PIECES, Schedule
from service.config.yaml import load_preset, to_yaml
from service.errors import UsageError
from tests.conftest import digits_config

COSINE = {"from": 2e-4, "to": 5e-5, "images": 20_000, "shape": "cosine"}


def config_of(**training) -> Config:
    values = load_preset("digits")
    return Config(**(values | {"training": values["training"] | training}))


def test_it_goes_from_one_value_to_the_other_and_stays():
    line = Schedule(**COSINE | {"shape": "linear"})
    assert [line.at(clock) for clock in (0, 10_000, 20_000, 10**9)] == pytest.approx(
        [2e-4, 1.25e-4, 5e-5, 5e-5]
    )
    curve = Schedule(**COSINE)
    for share in (0, 0.25, 0.5, 1):
        expected = 5e-5 + 1.5e-4 * (1 + math.cos(math.pi * share)) / 2
        assert curve.at(round(20_000 * share)) == pytest.approx(expected)


@given(
    st.floats(0, 1), st.floats(0, 1), st.integers(1, 10**9), st.sampled_from(["linear", "cosine"]),
    st.integers(0, 2 * 10**9), st.integers(0, 2 * 10**9),
)  # fmt: skip
def test_it_never_turns_back_and_moves_a_hundred_times_at_most(start, end, images, shape, one, other):
    schedule = Schedule(**{"from": start, "to": end, "images": images, "shape": shape})
    first, second = (schedule.at(clock) for clock in sorted((one, other)))
    assert (second - first) * (end - start) >= -1e-12
    assert min(start, end) - 1e-12 <= first <= max(start, end) + 1e-12
    moments = {schedule.at(images * i // 1000) for i in range(1001)}
    assert len(moments) <= PIECES + 1


def test_it_is_written_as_it_was_given(tmp_path):
    config = config_of(lr_generator=COSINE, r1={"from": 0.05, "to": 0.005, "images": 100})
    assert yaml.safe_load(to_yaml(config))["training"]["lr_generator"] == COSINE
    assert Config(**config.model_dump()) == config
    assert digits_config("--training.lr_generator", str(COSINE).replace("'", '"')) == config_of(
        lr_generator=COSINE
    )


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ({"to": 5}, r"lr_generator: \{.*\}: to: 5: Input should be less than or equal to 1"),
        ({"from": 0}, r"lr_generator: \{.*\}: from: 0: Input should be greater than 0"),
        ({"images": 0}, r"lr_generator\.images: 0: Input should be greater than or equal to 1"),
        ({"images": None}, r"lr_generator\.images: None: Input should be a valid integer"),
        ({"shape": "step"}, r"lr_generator\.shape: 'step': Input should be 'linear' or 'cosine'"),
        ({"form": 1}, r"lr_generator\.form: 1: no such setting; did you mean from\?"),
        ({"to": "nan"}, r"lr_generator\.to: 'nan': .*finite"),
    ],
    ids=str,
)
def test_what_no_schedule_can_be_is_refused_once_with_its_key(schedule, words):
    text = str(COSINE | schedule).replace("'", '"').replace("None", "null")
    with pytest.raises(UsageError, match=words) as error:
        digits_config("--training.lr_generator", text)
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"from": 1e-3, "to": 1e-4', r"is no JSON \(Expecting ',' delimiter: line 1 column 26"),
        ('{"from": 1e-3, "to": 1e-4}', r"images: not given; add it to training\.lr_generator$"),
    ],
)
def test_a_schedule_that_is_cut_short_is_told_as_that(text, words):
    with pytest.raises(UsageError, match=words):
        digits_config("--training.lr_generator", text)


def test_a_rewind_scales_all_of_it_or_puts_a_number_in_its_place():
    training = config_of(lr_generator=COSINE).training
    halved = amend(training, resolve(training, {"training.lr_generator": "x0.5"}, "here"), "here")
    assert halved.lr_generator == Schedule(**COSINE | {"from": 1e-4, "to": 2.5e-5})
    again = amend(halved, resolve(halved, {"training.lr_generator": "x0.5"}, "here"), "here")
    assert again.lr_generator == Schedule(**COSINE | {"from": 5e-5, "to": 1.25e-5})
    fixed = amend(training, resolve(training, {"training.lr_generator": 1e-5}, "here"), "here")
    assert fixed.lr_generator == 1e-5
    with pytest.raises(ValueError, match=r"lr_generator: .*from: 2: Input should be less"):
        amend(training, resolve(training, {"training.lr_generator": "x10000"}, "here"), "here")
