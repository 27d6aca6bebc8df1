"""How many workers to fit: what is free on each node that answers, and the counts that are allowed."""

import logging
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray._private.state import state

from service.config import Config

log = logging.getLogger(__name__)

KNOCK_LIMIT_S = 5.0
KNOCKS_AT_ONCE = 32
RELEASE_LIMIT_S = 10.0
"""A group that ended holds its resources for some seconds more."""
_POLL_S = 0.5

Resources = Mapping[str, float]


def room(nodes: Sequence[Resources], need: Resources) -> int:
    """How many workers fit into these resources, node by node: a worker lies on one node."""
    return sum(min(int(node.get(kind, 0) // amount) for kind, amount in need.items()) for node in nodes)


def choose(counts: Sequence[int], fitting: int, below: int | None = None) -> int:
    """The largest allowed count that fits, or else the smallest: an autoscaler may bring its nodes.

    `below` is a count that did not start although it seemed to fit; a smaller one is taken, if any.
    """
    smaller = [count for count in counts if below is None or count < below]
    return max((count for count in smaller if count <= fitting), default=counts[0])


def choose_workers(config: Config, below: int | None = None) -> int:
    """The number of workers to fit now; waits a moment for what a group before has not yet released."""
    need, counts = worker_resources(config), config.worker_counts
    answering = _answering()
    most = room([node["Resources"] for node in answering], need)
    names = {node["NodeID"] for node in answering}

    def fitting() -> int:
        free = state.available_resources_per_node()
        return room([free[name] for name in names & free.keys()], need)

    now = _wait_until(lambda: choose(counts, fitting()) >= choose(counts, most), fitting)
    if now < counts[0]:
        log.warning("event=waiting_for_nodes workers=%d each=%s free_for=%d", counts[0], dict(need), now)
    return choose(counts, now, below)


def worker_resources(config: Config) -> dict[str, float]:
    """What Ray reserves for one worker."""
    return {"CPU": float(config.scale.cpus)} | ({"GPU": 1.0} if config.scale.gpu else {})


def _wait_until(is_free: Callable[[], bool], value: Callable[[], int]) -> int:
    deadline = time.monotonic() + RELEASE_LIMIT_S
    while not is_free() and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return value()


def _answering() -> list[dict[str, Any]]:
    """The nodes that answer and are to stay. Ray needs up to a minute to notice a killed one."""
    leaving = state.get_draining_nodes()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]
    with ThreadPoolExecutor(KNOCKS_AT_ONCE) as threads:
        answers = list(threads.map(_answers, nodes))
    for node, answered in zip(nodes, answers, strict=True):
        if not answered:
            log.warning("event=node_silent node=%s", node["NodeID"])
    return [node for node, answered in zip(nodes, answers, strict=True) if answered]


def _answers(node: dict[str, Any]) -> bool:
    try:
        place = (node["NodeManagerAddress"], node["NodeManagerPort"])
        socket.create_connection(place, KNOCK_LIMIT_S).close()
        return True
    except OSError:
        return False
