"""The Ray that a command starts for itself."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

JOIN = """
from ray._private.runtime_env import uv_runtime_env_hook
uv_runtime_env_hook._get_uv_run_cmdline = lambda: ["uv", "run", "python", "-m", "service.train"]
import ray
from service.driver.join import join_ray
from tests.conftest import tiny_config
with join_ray(tiny_config("unused", "unused")):
    environment = ray.get_runtime_context().runtime_env
    print(sorted(environment))
"""


@pytest.mark.slow
def test_nothing_is_packed_for_workers_on_this_machine_even_under_uv_run(tmp_path):
    with open(tmp_path / "large", "wb") as file:
        file.truncate(600 << 20)  # more than Ray would pack
    result = subprocess.run(
        [sys.executable, "-c", JOIN],
        cwd=tmp_path,
        env=os.environ | {"RAY_ADDRESS": "", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "['env_vars']\n"
