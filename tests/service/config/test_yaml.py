"""Files of settings are read by YAML 1.2, bounded, and what is written is read back the same."""

import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from service.config.command_line import ConfigOptions, parse_config
from service.config.yaml import LARGEST_BYTES, dump_yaml, load_preset, load_yaml, preset_names
from service.errors import UsageError
from tests.conftest import tiny_values


def read(folder: Path, text: str):
    (folder / "file.yaml").write_text(text)
    return load_yaml(folder / "file.yaml", "--config")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1:4", "1:4"),
        ("190:20:30", "190:20:30"),
        ("no", "no"),
        ("on", "on"),
        ("2026-11-27", "2026-11-27"),
        ("1e-4", 1e-4),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("+12", 12),
        ("010", 10),
        ("0o10", 8),
        ("0xff", 255),
        ("1_000", "1_000"),
        ("-.inf", -math.inf),
        ("~", None),
        ("", None),
        ("True", True),
        ("'1'", "1"),
        ("<<", "<<"),
        ("=", "="),
    ],
)
def test_a_value_is_what_yaml_1_2_says(tmp_path, text, value):
    result = read(tmp_path, f"key: {text}\n")["key"]
    assert (result, type(result)) == (value, type(value))


def test_a_range_of_workers_in_a_file_is_the_range_of_the_flag(tmp_path):
    values = tiny_values("data", "run")
    values["scale"] = {"workers": "RANGE"}
    text = yaml.safe_dump(values).replace("RANGE", "1:4")
    (tmp_path / "file.yaml").write_text(text)
    config = parse_config(ConfigOptions, ["--config", str(tmp_path / "file.yaml")], "x", "x")[1]
    assert config.scale.workers == "1:4"
    assert config.worker_counts == [1, 2, 4]


def test_merge_keys_work_and_every_preset_loads(tmp_path):
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n"
    assert read(tmp_path, text)["b"] == {"x": 1, "y": 3}
    assert all(load_preset(name) for name in preset_names())


BOMB = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)
MERGES = "a0: &a0 {k: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 9)
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "more than 100000 values"),
        (MERGES, "more than 100000 values"),
        ("a: &a [*a]", "an alias leads to the value that it is in"),
        ("a: " + "x" * LARGEST_BYTES, "more than 1048576 bytes"),
        ("a: 1\na: 2", "a is given twice"),
        ("[" * 5000, "cannot be read as YAML"),
        ("a: !!python/object/apply:os.getcwd []", "cannot be read as YAML"),
        ("a: [", "cannot be read as YAML"),
    ],
    ids=str.split("bomb merges circle long twice deep code broken"),
)
def test_what_is_no_configuration_is_refused_in_one_line(tmp_path, text, words):
    with pytest.raises(UsageError, match=words):
        read(tmp_path, text)


TEXT = st.text(st.characters(categories=["L", "M", "N", "P", "S", "Zs"]))
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
    | st.sampled_from(["1:4", "no", "0o7", "1e5", "12e03", "0x1f", "~", "", "null", ".5", "<<", "="]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(PLAIN)
def test_what_is_written_is_read_back_the_same(tmp_path_factory, content):
    text = dump_yaml({"key": content})
    assert read(tmp_path_factory.getbasetemp(), text) == {"key": content}


def test_a_file_that_is_not_there_is_called_so(tmp_path):
    with pytest.raises(UsageError, match=r"--config .*gone.yaml: no such file; correct the path"):
        load_yaml(tmp_path / "gone.yaml", "--config")
