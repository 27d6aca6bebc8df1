"""A head and two nodes: a worker, a node and the driver are killed in one run, and nothing shows it."""

from collections.abc import Callable

import torch

from tests.chaos.conftest import (
    IMAGES,
    LOOK_EVERY,
    SAVE_EVERY,
    actors,
    bring_nodes,
    curve,
    family,
    kill,
    workers,
)

NODES = ("node-1", "node-2")
TOLERANCE = 1e-6


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

    assert [name.clock for name in run.commits()] == list(range(SAVE_EVERY, IMAGES + 1, SAVE_EVERY))
    same_as_undisturbed(run, undisturbed)


def spread(cluster) -> list[int]:
    """Workers by node."""
    return [len(workers(cluster, node)) for node in NODES]


def goes_on(run, disturbance: str, act: Callable[[], object]) -> None:
    """Disturb it, and wait for a commit by workers that began after that, from the last before it."""
    before, groups = run.clock(), len(run.groups())
    act()
    # that of before + SAVE_EVERY may have been under way
    run.wait_for(lambda: run.clock() > before + SAVE_EVERY, f"{disturbance} to new commits")
    started = run.groups()[groups:]
    assert started
    assert all(clock >= before for _, clock in started)


def same_as_undisturbed(run, undisturbed) -> None:
    """To rounding, in float64: the number of workers was not always the same."""
    tensors, manifest = run.final()
    expected_tensors, expected = undisturbed.final()
    assert manifest.state.clock == IMAGES
    assert manifest.state.attempt == expected.state.attempt == 0
    for network in ("generator", "discriminator", "ema"):
        for name, value in expected_tensors[network].items():
            torch.testing.assert_close(
                tensors[network][name], value, rtol=TOLERANCE, atol=TOLERANCE, msg=f"{network}.{name}"
            )

    parent, nested = run.mlflow_runs()
    assert (parent.info.status, nested) == ("FINISHED", [])
    clocks = list(range(LOOK_EVERY, IMAGES + 1, LOOK_EVERY))
    (wanted, _) = undisturbed.mlflow_runs()
    for name in ("loss_d", "loss_g", "grad_norm_d", "grad_norm_g"):
        points, reference = curve(parent, name), curve(wanted, name)
        assert list(points) == list(reference) == clocks, name
        for clock in clocks:
            assert abs(points[clock] - reference[clock]) <= TOLERANCE * max(1, abs(reference[clock]))
