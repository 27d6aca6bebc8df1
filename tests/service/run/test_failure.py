"""A failure that lasts ends the next start at once, until a setting changes or a person says so."""

import pytest

from service import errors
from service.collapse.response import CollapseError
from service.driver.supervisor import Outcome, decide
from service.errors import ServiceError, TrainingError
from service.run.failure import FAILURE_KEY, check_failure, write_failure
from service.storage import open_storage
from tests.conftest import tiny_config


@pytest.fixture
def storage(tmp_path):
    return open_storage(str(tmp_path / "run"))


def test_it_is_met_again_in_the_same_words_until_a_setting_changes(storage, tmp_path):
    config = tiny_config("data", tmp_path / "run")
    check_failure(storage, config, again=False)
    write_failure(storage, config, TrainingError("s3://b/x: the credentials were refused; check them"))
    for _ in range(2):
        with pytest.raises(
            TrainingError, match=r"--again.*\ns3://b/x: the credentials .*them$"
        ) as raised:
            check_failure(storage, config, again=False)
    assert "no setting has changed since" in str(raised.value)
    gentler = tiny_config("data", tmp_path / "run", collapse={"max_rewinds": 9})
    check_failure(storage, gentler, again=False)
    check_failure(storage, config, again=False)  # forgotten


def test_a_collapse_is_met_again_as_one_so_that_a_sweep_counts_it(storage, tmp_path):
    config = tiny_config("data", tmp_path / "run")
    error = TrainingError("collapsed at 160 images")
    error.__cause__ = CollapseError("collapsed at 160 images")
    write_failure(storage, config, error)
    with pytest.raises(TrainingError, match=r"\ncollapsed at 160 images$") as raised:
        check_failure(storage, config, again=False)
    assert isinstance(raised.value.__cause__, CollapseError)


def test_a_person_may_try_again(storage, tmp_path):
    config = tiny_config("data", tmp_path / "run")
    write_failure(storage, config, TrainingError("why"))
    check_failure(storage, config, again=True)
    assert FAILURE_KEY not in storage.sizes()


@pytest.mark.parametrize(
    ("error", "lasts"),
    [
        (errors.UsageError, True),
        (errors.DataError, True),
        (errors.RefusedError, True),
        (errors.MemoryLackError, True),
        (CollapseError, True),
        (errors.StorageError, False),
        (errors.LockError, False),
        (errors.TrainingError, False),
    ],
)
def test_what_lasts_ends_a_run_and_what_passes_is_tried_again(error: type[ServiceError], lasts):
    assert error.lasts == lasts
    outcome = Outcome(16, "why", error("why") if lasts else None)
    assert decide(outcome, 100, 0, 0, 3).kind == ("stop" if lasts else "fit")
