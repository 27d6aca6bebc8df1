"""Which settings may change when a run is started again, and how an error names those that may not."""

from service.config.identity import differences
from tests.conftest import digits_config


def test_a_run_of_before_a_setting_existed_resumes_with_its_default():
    before = digits_config().model_dump()
    del before["training"]["reset_adam"], before["model"]["base"]
    assert differences(before, digits_config()) == []
    (line,) = differences(before, digits_config("--training.reset_adam", "true"))
    assert line == "training.reset_adam: the run was started with False, now it is True"


def test_a_resumed_run_may_change_where_it_runs_and_nothing_of_what_it_is():
    before = digits_config().model_dump()
    assert differences(before, digits_config("--run.images", "9", "--data.max_bad_samples", "1")) == []
    (line,) = differences(before, digits_config("--training.lr_generator", "0.001"))
    assert "0.0005" in line
    assert "0.001" in line


def test_settings_that_this_version_does_not_know_are_named_and_no_reason_to_fall():
    before = digits_config().model_dump()
    before["training"]["newer"] = 3
    (line,) = differences(before, digits_config())
    assert line == "training.newer: the run was started with 3, now it is None"
    assert "model.width: the run was started with None, now it is" in "\n".join(
        differences({"training": 3}, digits_config())
    )
