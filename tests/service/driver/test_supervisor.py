"""The supervisor's judgement: when to fit again, when to stop, and with how many workers."""

import pytest

from service.driver.supervisor import Outcome, choose_workers, decide
from service.errors import DataError
from tests.conftest import tiny_config


def test_a_run_that_reached_its_end_is_done():
    assert decide(Outcome(100), 100, 0, 0, 3).kind == "done"


def test_a_dead_worker_is_tried_again_and_progress_forgives_earlier_failures():
    action = decide(Outcome(50, "killed"), 100, clock_before=0, failures=3, max_failures=3)
    assert (action.kind, action.failures) == ("fit", 1)
    action = decide(Outcome(50, "killed"), 100, clock_before=50, failures=1, max_failures=3)
    assert (action.kind, action.failures) == ("fit", 2)


def test_failures_in_a_row_without_progress_end_it_with_the_reason():
    action = decide(Outcome(50, "killed"), 100, clock_before=50, failures=3, max_failures=3)
    assert action.kind == "stop"
    assert "4 times in a row: killed" in action.reason


def test_a_lasting_error_is_not_tried_again():
    action = decide(Outcome(50, "no such bucket", DataError("no such bucket")), 100, 0, 0, 3)
    assert (action.kind, action.reason) == ("stop", "no such bucket")


def test_waiting_for_nodes_is_no_failure_and_goes_on_for_as_long_as_it_takes():
    outcome = Outcome(50, "timed out waiting for 4 workers", waiting=True)
    action = decide(outcome, 100, clock_before=50, failures=3, max_failures=3)
    assert (action.kind, action.failures) == ("fit", 3)


@pytest.mark.parametrize(
    ("workers", "resources", "expected"),
    [
        ("1:8", {"CPU": 5.0}, 4),  # 5 divides no batch of 8
        ("1:8", {"CPU": 16.0}, 8),
        ("2:8", {"CPU": 1.0}, 2),  # asked for all the same: an autoscaler may bring it
        (4, {"CPU": 64.0}, 4),
    ],
)
def test_the_largest_allowed_count_that_fits_is_taken(workers, resources, expected):
    config = tiny_config("unused", "unused", scale={"workers": workers})
    assert choose_workers(config, resources) == expected


def test_a_cluster_that_is_too_small_is_told_of(caplog):
    config = tiny_config("unused", "unused", scale={"workers": 4})
    assert choose_workers(config, {"CPU": 2.0}) == 4
    assert "waiting_for_nodes workers=4" in caplog.text


def test_gpus_count_where_they_are_asked_for():
    config = tiny_config("unused", "unused", scale={"workers": "1:8", "gpu": True})
    assert choose_workers(config, {"CPU": 64.0, "GPU": 2.0}) == 2
