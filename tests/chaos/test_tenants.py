"""Another tenant of the cluster holds a node and frees it, and the node leaves: the run follows."""

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import psutil
import pytest

from tests.chaos.conftest import SAVE_EVERY, bring_nodes, family, same_as_undisturbed

pytestmark = pytest.mark.long

HOLD = """
import ray, sys
ray.init(logging_level="WARNING", log_to_driver=False)

@ray.remote(num_cpus=1)
class Tenant:
    def ready(self):
        return True

tenant = Tenant.remote()
ray.get(tenant.ready.remote())
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def tenant() -> Iterator[None]:
    """A job of someone else's, which holds one of the two CPUs."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield
    finally:
        process.communicate()


def test_a_run_takes_the_node_that_a_tenant_frees_and_saves_when_a_node_is_reclaimed(
    cluster, run, undisturbed
):
    with tenant():
        run.submit()
        run.wait_for(lambda: run.clock() >= SAVE_EVERY, "start beside a tenant to the first commit")
        assert [workers for workers, _ in run.groups()] == [1]
    run.wait_for(lambda: len(run.groups()) == 2, "a tenant's end to a larger group")
    count, clock = run.groups()[1]
    assert count == 2
    assert clock % SAVE_EVERY == 0  # it grew at a commit that was due

    run.wait_for(lambda: run.clock() > clock, "a larger group to its first commit")
    node = family(cluster, "node-1")
    node[0].send_signal(signal.SIGTERM)  # as for a spot node's notice
    run.wait_for(lambda: len(run.groups()) == 3, "a node's notice to a smaller group")
    assert run.groups()[2][0] == 1
    psutil.wait_procs(node, 100)
    assert "failures=1" not in run.output()  # a node that is reclaimed is no failure

    bring_nodes(cluster)
    assert run.end() == 0, run.output()
    same_as_undisturbed(run, undisturbed)
    sizes = [event["reason"] for event in timeline_of(run)]
    assert sizes[:2] == ["1 → 2 workers", "2 → 1 workers"]  # and more once the node is back


def timeline_of(run) -> list[dict]:
    """The sizes that the run's timeline in MLflow tells of."""
    client = mlflow.MlflowClient()
    run_id = run.mlflow_runs()[0].info.run_id
    files = client.list_artifacts(run_id, "timeline")
    texts = [Path(client.download_artifacts(run_id, f.path)).read_text() for f in files]
    return [event for event in map(json.loads, texts) if event["action"] == "resize"]
