"""S3, then MLflow and the recorder are killed under a run, it is told to end, and nothing shows it."""

from service.cli import Exit
from service.run import checkpoint
from tests.chaos.conftest import IMAGES, LOOK_EVERY, NODES, SAVE_EVERY, actors, curve, family, kill
from tests.conftest import assert_equal

TRIES = 5


def test_a_run_outlives_s3_mlflow_its_recorder_and_an_end_and_ends_bit_for_bit_the_same(
    cluster, run, undisturbed
):
    run.submit()
    run.wait_for(lambda: run.clock() >= 2 * SAVE_EVERY, "start to the second commit")
    before = run.clock()
    kill(family(cluster, "s3"))
    run.wait_for(
        lambda: run.live("recorder_storage_retries") >= TRIES, f"SIGKILL of S3 to {TRIES} second tries"
    )
    cluster.up(["s3"])
    run.wait_for(lambda: run.clock() > before + SAVE_EVERY, "S3 is back to new commits")
    before = run.clock()
    kill(family(cluster, "mlflow"))
    kill([actor for place in ("ray", *NODES) for actor in actors(cluster, place, "Recorder")])
    run.wait_for(
        lambda: run.clock() > before + SAVE_EVERY, "MLflow and the recorder gone to new commits"
    )
    cluster.up(["mlflow"])
    assert run.groups() == [(2, 0)]  # no worker was restarted for it
    run.terminate()
    assert run.end() == Exit.INTERRUPTED, run.output()
    assert run.mlflow_runs()[0].info.status == "KILLED"
    _, left = run.final()
    assert left.state.clock < IMAGES
    assert left.due == (left.state.clock % SAVE_EVERY == 0)  # what was trained by then is saved
    run.submit()
    assert run.end() == 0, run.output()

    assert run.groups() == [(2, 0), (2, left.state.clock)]
    due = [*range(SAVE_EVERY, IMAGES + 1, SAVE_EVERY)]
    assert [name.clock for name in run.committed() if name.clock in due] == due
    sequences = [name.sequence for name in run.committed()]
    assert sequences == sorted({*sequences})  # nor was a commit made twice
    assert sequences[-1] - len(sequences) <= 1  # the one between goes once a due one is there
    for name in run.committed():
        assert checkpoint.read(run.storage, name)[1].state.clock == name.clock
    tensors, manifest = run.final()
    expected_tensors, expected = undisturbed.final()
    assert manifest.state == expected.state
    assert_equal(tensors, expected_tensors)
    parent, _ = run.mlflow_runs()
    points = curve(parent, "loss_d")
    assert list(points) == list(range(LOOK_EVERY, IMAGES + 1, LOOK_EVERY))
    assert points == curve(undisturbed.mlflow_runs()[0], "loss_d")
