"""Ray's own `ray start` for nodes that share a machine: `python -m cluster.ray_start OPTIONS`.

Ray replaces a loopback address by the machine's own, so that other machines may join, unless
`environment.RAY_ALONE` says that none will. Its command then lets no node join at all; nodes on this
machine may.
"""

import os

from ray._private import ray_constants, services
from ray.scripts.scripts import start

from service import environment


def _as_it_is(host: str) -> str:
    return host


if __name__ == "__main__":
    os.environ |= environment.RAY_ALONE  # for all that it starts
    ray_constants.ENABLE_RAY_CLUSTER = True
    services.resolve_ip_for_localhost = _as_it_is
    start()
