"""A head and two nodes: a worker, a node and the driver are killed in one run, and nothing shows it."""

from tests.chaos.conftest import (
    IMAGES,
    SAVE_EVERY,
    actors,
    bring_nodes,
    family,
    goes_on,
    kill,
    same_as_undisturbed,
    spread,
    workers,
)


def test_a_run_outlives_a_worker_a_node_and_its_driver(cluster, run, undisturbed):
    run.submit()
    run.wait_for(lambda: run.clock() >= 2 * SAVE_EVERY, "start to the second commit")
    assert spread(cluster) == [1, 1]

    goes_on(run, "SIGKILL of a worker", lambda: kill(workers(cluster, "node-2")))
    assert spread(cluster) == [1, 1]

    controller = actors(cluster, "ray", "TrainController")
    goes_on(run, "SIGKILL of Ray's controller of them", lambda: kill(controller))
    assert spread(cluster) == [1, 1]

    goes_on(run, "SIGKILL of one of two nodes", lambda: kill(family(cluster, "node-1")))
    assert len(workers(cluster, "node-2")) == 1

    assert run.groups()[-1][0] == 1

    run.kill()
    bring_nodes(cluster)
    goes_on(run, "SIGKILL of the driver, and the command again", run.submit)
    assert spread(cluster) == [1, 1]
    assert run.end() == 0, run.output()

    assert [name.clock for name in run.committed()] == list(range(SAVE_EVERY, IMAGES + 1, SAVE_EVERY))
    same_as_undisturbed(run, undisturbed)
