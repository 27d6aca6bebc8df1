"""What stands still without dying: a worker, then a whole node. The run finds it and goes on."""

import signal

import psutil
import pytest

from tests.chaos.conftest import (
    CONFIG,
    SAVE_EVERY,
    ChaosRun,
    bring_nodes,
    family,
    goes_on,
    kill,
    same_as_undisturbed,
    spread,
    workers,
)

pytestmark = pytest.mark.long

HANG_S = 15.0


@pytest.fixture
def run(request, data, tmp_path):
    """A run of as many workers as there are nodes, which finds a hang after some seconds."""
    scale = CONFIG["scale"] | {"hang_s": HANG_S}
    with ChaosRun(request.node.name, tmp_path, data, **(CONFIG | {"scale": scale})) as run:
        yield run


def test_a_stopped_worker_and_a_stopped_node_are_found_and_left(cluster, run, undisturbed):
    run.submit()
    run.wait_for(lambda: run.clock() >= SAVE_EVERY, "start to the first commit")
    assert spread(cluster) == [1, 1]

    goes_on(run, "SIGSTOP of a worker", lambda: stop(workers(cluster, "node-2")))
    assert spread(cluster) == [1, 1]

    stopped = family(cluster, "node-1")
    try:
        goes_on(run, "SIGSTOP of a node", lambda: stop(stopped))
        assert run.groups()[-1][0] == 1
    finally:
        kill(stopped)
    bring_nodes(cluster)
    assert run.end() == 0, run.output()
    same_as_undisturbed(run, undisturbed)


def test_a_node_where_workers_stand_still_twice_is_left_out(cluster, run, undisturbed):
    run.submit()
    run.wait_for(lambda: run.clock() >= SAVE_EVERY, "start to the first commit")
    goes_on(run, "SIGSTOP of a worker", lambda: stop(workers(cluster, "node-2")))
    assert spread(cluster) == [1, 1]
    goes_on(run, "SIGSTOP of another on the same node", lambda: stop(workers(cluster, "node-2")))
    assert spread(cluster) == [1, 0]
    assert run.end() == 0, run.output()
    assert run.groups()[-1][0] == 1
    assert run.output().count("event=node_left_out") == 1
    same_as_undisturbed(run, undisturbed)


def stop(processes: list[psutil.Process]) -> None:
    """SIGSTOP to all."""
    for process in processes:
        process.send_signal(signal.SIGSTOP)
