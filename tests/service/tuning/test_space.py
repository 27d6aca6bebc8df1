"""Search spaces: what they may hold, and how what they may not is told."""

import pytest
import yaml

from service.errors import UsageError
from service.tuning.space import apply, decode, encode, parse_space, read_space
from tests.conftest import tiny_config


@pytest.fixture(scope="module")
def config():
    return tiny_config("unused", "unused")


def parse(text: str, config):
    return parse_space(yaml.safe_load(text), config, "space.yaml")


def test_every_kind_of_dimension_is_read_in_the_order_of_the_file(config):
    text = """
        training.lr_generator: {loguniform: [5.0e-5, 5.0e-3]}
        training.adam_beta1: {uniform: [0, 0.9]}
        training.d_steps: {integer: [1, 4]}
        training.loss: {choice: [hinge, lsgan]}
        model.width: {grid: [4, 8]}
    """
    space = parse(text, config)
    assert [(d.kind, d.values) for d in space.dimensions] == [
        ("loguniform", (5e-5, 5e-3)),
        ("uniform", (0, 0.9)),
        ("integer", (1, 4)),
        ("choice", ("hinge", "lsgan")),
        ("grid", (4, 8)),
    ]
    assert space.to_plain() == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("training.lr_generater: {uniform: [0.1, 0.2]}", "did you mean training.lr_generator"),
        ("lr: {uniform: [0.1, 0.2]}", "lr: no such setting"),
        ("run.dir: {choice: [a, b]}", "run.dir: cannot be swept"),
        ("scale.workers: {choice: [1, 2]}", "scale.workers: cannot be swept"),
        ("evaluation.best: {choice: [fd, kid]}", "evaluation.best: cannot be swept"),
        ("", "names no setting to sweep"),
        ("[]", "names no setting to sweep"),
        ("training.d_steps: [1, 2]", "give one of uniform, loguniform, integer, choice, grid"),
        ("training.d_steps: {normal: [1, 2]}", "give one of uniform"),
        ("training.d_steps: {choice: []}", "give a list of values"),
        ("training.d_steps: {choice: [1, 1]}", "lists a value twice"),
        ("training.lr_generator: {uniform: [0.2, 0.1]}", "first number must be below the second"),
        ("training.lr_generator: {uniform: [0.1, .nan]}", "give two numbers"),
        ("training.lr_generator: {uniform: [0.1]}", "give two numbers"),
        ("training.lr_generator: {loguniform: [1e-4, 1e-2]}", "YAML needs the point in 5.0e-5"),
        ("training.r1: {loguniform: [0, 1]}", "loguniform needs numbers above 0"),
        ("training.d_steps: {integer: [1, 2.5]}", "integer needs whole numbers"),
        # values that the configuration does not take
        ("training.lr_generator: {loguniform: [1.0e-3, 10.0]}", r"training\.lr_generator: 10\.0"),
        ("training.d_steps: {integer: [0, 2]}", r"training\.d_steps: 0"),
        ("training.d_steps: {uniform: [1, 3]}", "valid integer"),
        ("training.loss: {choice: [hinge, hing]}", r"training\.loss: 'hing'"),
        ("data.lanes: {choice: [8, 7]}", r"scale\.workers"),
    ],
)  # fmt: skip
def test_what_a_space_may_not_hold_is_refused_with_the_key_and_the_remedy(text, words):
    config = tiny_config("unused", "unused", scale={"workers": 2})
    with pytest.raises(UsageError, match=words):
        parse(text, config)


@pytest.mark.parametrize("content", [None, "training: [", "\0", "a: 1\na: 2"])
def test_a_file_that_is_no_yaml_is_named(config, tmp_path, content):
    file = tmp_path / "space.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UsageError, match=r"--space .*space\.yaml: (cannot be read|no such file)"):
        read_space(str(file), config)


def test_a_listed_value_may_be_a_whole_phase_table_and_comes_out_as_it_went_in(config):
    tables = [[{"resolution": 32, "hold_images": n, "batch": 16}] for n in (96, 192)]
    space = parse_space({"phases": {"choice": tables}, "training.r1": {"uniform": [0, 1]}}, config, "x")
    chosen = {"phases": encode(space.dimensions[0].values[1]), "training.r1": 0.5}
    values = decode(space, chosen)
    changed = apply(config, values, "x")
    assert changed.phases[0].hold_images == 192
    assert changed.training.r1 == 0.5
    assert changed.model == config.model
