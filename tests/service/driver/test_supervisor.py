"""The supervisor's judgement: when to fit again and when to stop."""

from service.driver.supervisor import Outcome, decide
from service.errors import DataError


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
