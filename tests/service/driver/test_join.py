"""The Ray that a command starts for itself, and how many workers it fits beside other tenants."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

JOIN = """
from ray._private.runtime_env import uv_runtime_env_hook
uv_runtime_env_hook._get_uv_run_cmdline = lambda: ["uv", "run", "python", "-m", "service.train"]
import os
os.cpu_count = lambda: 2
import ray
from service.driver.join import join_ray
from service.driver import group
from tests.conftest import tiny_config

@ray.remote(num_cpus=1)
class Tenant:
    def ready(self):
        return True

group.RELEASE_LIMIT_S = 2.0
config = tiny_config("unused", "unused", scale={"workers": "1:2"})

def choose(config):
    return group.Group(config, None).choose()

with join_ray(config):
    environment = sorted(ray.get_runtime_context().runtime_env)
    alone = choose(config)
    tenant = Tenant.remote()
    ray.get(tenant.ready.remote())
    beside = choose(config)
    ray.kill(tenant)
    after = choose(config)
print(environment, alone, beside, after)
"""


@pytest.mark.slow
def test_it_packs_nothing_even_under_uv_run_and_leaves_tenants_their_share(tmp_path):
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
    assert result.stdout == "['env_vars'] 2 1 2\n"  # the tenant's CPU is taken again when it goes
