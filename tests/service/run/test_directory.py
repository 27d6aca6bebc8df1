"""A run directory: one run, by its key, its data and its configuration, or none at all."""

import json

import pytest

from service.errors import DataError, UsageError
from service.run.directory import RUN_KEY, Growth, RunData, read_run, same_run
from service.storage import MissingError, open_storage
from tests.conftest import tiny_config

FINGERPRINT = "5f1d" * 16
DATA = RunData(FINGERPRINT)


@pytest.fixture
def storage(tmp_path):
    return open_storage(str(tmp_path / "run"))


@pytest.fixture
def config(tmp_path):
    return tiny_config("data", tmp_path / "run")


def test_a_new_directory_becomes_a_run_that_is_known_again_by_its_key(storage, config):
    key = same_run(storage, config, DATA)
    before = storage.get(RUN_KEY)
    assert same_run(storage, config, DATA) == key
    assert storage.get(RUN_KEY) == before
    run = read_run(storage)
    assert (run.key, run.fingerprint) == (key, FINGERPRINT)
    assert run.config == json.loads(json.dumps(config.model_dump()))


def test_two_runs_have_two_keys(tmp_path, config):
    keys = {same_run(open_storage(str(tmp_path / name)), config, DATA) for name in "ab"}
    assert len(keys) == 2


def test_other_data_or_another_number_of_the_training_are_another_run(storage, config, tmp_path):
    same_run(storage, config, DATA)
    other = tiny_config("data", tmp_path / "run", run={"seed": 7})
    with pytest.raises(UsageError, match=r"holds another run; .*undo:\n +run\.seed: .*0.*7"):
        same_run(storage, other, DATA)
    with pytest.raises(UsageError, match=r"undo:\n +the data: fingerprint 5f1d.*, now abab"):
        same_run(storage, config, RunData("ab" * 32))


def test_a_sweeps_directory_is_no_runs(storage, config):
    storage.put("sweep.json", b"{}")
    with pytest.raises(UsageError, match=r"holds a sweep; choose another --run\.dir, or continue one"):
        same_run(storage, config, DATA)
    assert not storage.sizes(RUN_KEY)


def test_where_there_is_no_run_that_is_said(storage):
    with pytest.raises(MissingError, match=r"run\.json"):
        read_run(storage)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 1}, "has version 1, but this service reads version 2; use the version of the serv"),
        ({"version": None}, "has no version, but this service reads version 2"),
        ({"version": [2]}, r"has version \[2\], but this service reads version 2"),
        ({"key": ""}, r"damaged \(key: String should match pattern .*\); restore it"),
        ({"key": "5f1d" * 9}, r"damaged \(key: String should match pattern"),
        ({"key": "../../../home/.profile"}, r"damaged \(key: String should match pattern"),
        ({"fingerprint": 5}, r"damaged \(fingerprint: Input should be a valid string\)"),
        ({"config": []}, r"damaged \(config: Input should be an object\)"),
        ({"mood": "good"}, r"damaged \(mood: Extra inputs are not permitted\); .* another --run\.dir$"),
    ],
    ids=str,
)
def test_a_run_json_that_is_none_is_named_with_its_field_and_left_alone(storage, config, change, words):
    same_run(storage, config, DATA)
    content = json.dumps(json.loads(storage.get(RUN_KEY)) | change).encode()
    storage.put(RUN_KEY, content)
    for act in (lambda: read_run(storage), lambda: same_run(storage, config, DATA)):
        with pytest.raises(DataError, match=rf"^{storage.url(RUN_KEY)}: {words}"):
            act()
    assert storage.get(RUN_KEY) == content


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"\xff{}", b'{"a":' * 5000, b"\0" * 300])
def test_a_run_json_that_is_no_json_is_damaged(storage, config, content):
    storage.put(RUN_KEY, content)
    with pytest.raises(DataError, match=r"run\.json: damaged \(.*\); restore it from a copy, or choose"):
        same_run(storage, config, DATA)
    assert storage.get(RUN_KEY) == content


def test_another_address_of_the_same_data_is_the_same_run(storage, config, tmp_path):
    key = same_run(storage, config, DATA)
    for address in ("elsewhere", "s3://bucket/data", "s3://bucket/data/"):
        moved = tiny_config(address, tmp_path / "run")
        assert same_run(storage, moved, DATA) == key


def test_a_run_goes_on_with_data_that_grew_if_that_is_asked_for(storage, config, tmp_path):
    key = same_run(storage, config, DATA)
    larger = RunData("ab" * 32, ("daisy",), before=(FINGERPRINT,))
    with pytest.raises(UsageError, match=r"it grew: set data\.grown to true"):
        same_run(storage, config, larger)
    asked = tiny_config("data", tmp_path / "run", data={"grown": True})
    with pytest.raises(UsageError, match=r"fingerprint 5f1d.*, now cdcd"):
        same_run(storage, asked, RunData("cd" * 32))  # other data, that grew from none
    assert same_run(storage, asked, larger) == key
    run = read_run(storage)
    assert (run.fingerprint, run.classes) == ("ab" * 32, ("daisy",))
    assert run.grown == (Growth(0, FINGERPRINT),)
    assert same_run(storage, config, larger) == key
