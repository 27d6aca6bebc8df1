"""A NaN gets into a checkpoint: the run stops, or goes back by itself, and is killed as it does."""

import hashlib
import io
import json

import mlflow
import torch

from service.run import checkpoint, commits
from tests.chaos.conftest import LOOK_EVERY, SAVE_EVERY, curve
from tests.runs import sealed

PLANTED = 4 * SAVE_EVERY
SEEN, HEALTHY, END = PLANTED + LOOK_EVERY, PLANTED - SAVE_EVERY, PLANTED + 2 * SAVE_EVERY
RATES = ("training.lr_generator", "training.lr_discriminator")


def test_a_run_undoes_a_collapse_and_outlives_its_driver_at_it(cluster, run):
    run.submit("--run.images", str(PLANTED))
    assert run.end() == 0, run.output()
    plant_nan(run)
    healthy = next(name for name in run.committed() if name.clock == HEALTHY)

    run.submit("--run.images", str(END), "--collapse.action", "stop")
    assert run.end() == 3
    assert f"error: collapsed at {SEEN} images (numeric)" in run.output()
    assert f"the best checkpoint is {run.storage.url(healthy.folder)}" in run.output()
    assert run.clock() == PLANTED

    again = ("--run.images", str(END), "--collapse.action", "rewind")
    run.submit(*again)
    run.wait_for(lambda: run.clock() == HEALTHY, "start to the commit of a rewind")
    rewinds = run.live("rewinds_total")
    run.kill()
    run.submit(*again)
    assert run.end() == 0, run.output()

    made = [(name.clock, checkpoint.read(run.storage, name)[1]) for name in run.committed()]
    attempts = [(clock, manifest.state.attempt) for clock, manifest in made]
    clocks = range(SAVE_EVERY, END + 1, SAVE_EVERY)
    assert attempts == [(clock, int(clock >= HEALTHY)) for clock in clocks]
    _, manifest = run.final()
    training = manifest.model_dump()["config"]["training"]
    halved = {key: training[key.partition(".")[2]] / 2 for key in RATES}
    assert manifest.state.clock == END
    assert manifest.state.attempt == 1
    assert manifest.state.amendments == ((HEALTHY, halved),)
    assert rewinds == 1
    is_recorded(run, healthy, halved)


def is_recorded(run, healthy: commits.Name, halved: dict[str, float]) -> None:
    """In MLflow: what was undone in the run itself, what came after in a nested one, and why."""
    parent, (second,) = run.mlflow_runs()
    assert (parent.info.status, second.info.status) == ("FINISHED", "FINISHED")
    # of NaN there is no point
    assert list(curve(parent, "images_per_s")) == list(range(LOOK_EVERY, SEEN + 1, LOOK_EVERY))
    assert list(curve(parent, "loss_d")) == list(range(LOOK_EVERY, SEEN, LOOK_EVERY))
    assert list(curve(second, "loss_d")) == list(range(HEALTHY + LOOK_EVERY, END + 1, LOOK_EVERY))
    client = mlflow.MlflowClient()
    (entry,) = client.list_artifacts(parent.info.run_id, "timeline")
    event = json.loads(mlflow.artifacts.load_text(f"runs:/{parent.info.run_id}/{entry.path}"))
    assert event["action"] == "rewind"
    assert "NaN" in event["reason"]
    assert (event["at"], event["clock"], event["attempt"]) == (SEEN, HEALTHY, 1)
    assert (event["checkpoint"], event["amendment"]) == (healthy.folder, halved)


def plant_nan(run) -> None:
    """As a flipped bit would: a weight of the newest checkpoint becomes NaN, and the digest is right."""
    name = run.committed()[-1]
    weights = torch.load(io.BytesIO(run.storage.get(f"{name.folder}/generator.pt")), weights_only=True)
    weights["dense.weight"][0, 0] = float("nan")
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    data = buffer.getvalue()
    run.storage.put(f"{name.folder}/generator.pt", data)
    key = f"{name.folder}/{commits.MANIFEST}"
    manifest = json.loads(run.storage.get(key))
    digest = hashlib.sha256(data).hexdigest()
    manifest["files"]["generator.pt"] = {"bytes": len(data), "sha256": digest}
    run.storage.put(key, sealed(manifest))
