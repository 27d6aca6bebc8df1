"""How many trials run at a time."""

import pytest

from service.tuning.search import concurrency
from tests.conftest import tiny_config


@pytest.mark.parametrize(
    ("scale", "evaluation", "resources", "expected"),
    [
        ({"workers": 1}, {}, {"CPU": 2.0}, 2),
        ({"workers": 2}, {}, {"CPU": 2.0}, 1),
        ({"workers": 2, "cpus": 3}, {}, {"CPU": 20.0}, 3),
        ({"workers": 1}, {"cpus": 1}, {"CPU": 5.0}, 2),
        ({"workers": 4}, {}, {"CPU": 2.0}, 1),  # asked for all the same: an autoscaler may bring it
        ({"workers": "2:8", "gpu": True}, {}, {"CPU": 64.0, "GPU": 6.0}, 3),
        ({"workers": 1, "gpu": True}, {"gpus": 1}, {"CPU": 64.0, "GPU": 6.0}, 3),
    ],
)  # fmt: skip
def test_as_many_trials_run_at_a_time_as_the_cluster_holds(scale, evaluation, resources, expected):
    config = tiny_config("unused", "unused", scale=scale, evaluation=evaluation)
    assert concurrency(config, resources) == expected
