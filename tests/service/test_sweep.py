"""The command, end to end on a real Ray: searched, reported, registered; and what it refuses."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import yaml
from PIL import Image

from service import sweep
from service.collapse.response import CollapseError
from service.driver.preflight import open_run
from service.errors import TrainingError, UsageError
from service.run import commits, ranking
from service.run.failure import write_failure
from service.storage import open_storage
from service.storage.lock import read_holder
from service.tuning.driver import COLLAPSED
from tests.conftest import assert_no_secrets, run_command, tiny_config, tiny_values

pytestmark = pytest.mark.slow

LIMIT_S = 600
IMAGES, EVERY = 640, 128  # enough that a trial can be stopped before its end
WEIGHTS = [0.0, 0.01, 1.0e39]  # the last is beyond fp32: losses are infinite
SPACE = {"training.drift": {"grid": WEIGHTS}}
R1 = {"training.r1": {"uniform": [0, 1]}}


def write(folder: Path, digits: Path | str, space: Any = SPACE) -> list[str]:
    """The arguments of a sweep of small runs, too short to collapse but for numbers that overflow."""
    values = tiny_values(
        digits,
        folder / "run",
        run={"images": IMAGES},
        checkpoint={"every_images": EVERY},
        tracking={"every_images": EVERY, "pictures_every_images": 3 * EVERY},
        evaluation={"images": 16, "scores": ["swd"], "best": "swd"},
    )
    values["phases"] = [{"resolution": 32, "hold_images": IMAGES, "batch": 16}]
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    (folder / "space.yaml").write_text(yaml.safe_dump(space))
    return ["--config", str(folder / "tiny.yaml"), "--space", str(folder / "space.yaml"),
            "--dir", str(folder / "sweep")]  # fmt: skip


# One sweep of three trials ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept(digits, stack, tmp_path_factory) -> tuple[Path, str]:
    """A grid with successive halving, two trials at a time."""
    folder = tmp_path_factory.mktemp("swept")
    halving = ["--grace-images", str(EVERY), "--reduction", "2", "--concurrent", "2"]
    command = [*write(folder, digits), "--search", "grid", *halving]
    code, output = run_command("service.sweep", *command, **stack.environment)
    assert code == 0, output
    return folder, output


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep" / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def trials(folder: Path) -> dict[float, dict[str, str]]:
    """The table's rows by what was swept."""
    return {float(row["training.drift"]): row for row in table(folder)}


def client(folder: Path) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(f"sqlite:///{folder}/sweep/mlflow.db")


def runs(folder: Path) -> dict[str, Any]:
    """MLflow's runs by name."""
    experiment = client(folder).get_experiment_by_name("gan-training")
    return {run.info.run_name: run for run in client(folder).search_runs([experiment.experiment_id])}


def test_every_point_of_the_grid_is_tried_once(swept):
    folder, _ = swept
    assert sorted(trials(folder)) == WEIGHTS
    assert len(list((folder / "sweep" / "trials").iterdir())) == len(WEIGHTS)


def test_credentials_appear_nowhere(swept, stack):
    _, output = swept
    assert_no_secrets(stack, {"the sweep's output": output})


def test_halving_leaves_what_it_stops_in_order(swept):
    folder, _ = swept
    rows = [trials(folder)[weight] for weight in WEIGHTS[:2]]
    assert "finished" in [row["state"] for row in rows]
    for row in rows:
        storage = open_storage(str(folder / "sweep" / "trials" / row["trial"]))
        holder, _ = read_holder(storage)
        assert holder is not None
        assert holder.pid == 0
        # one that is to stop after its second score may have trained to the end when that is known
        trained = commits.newest_clock(storage) >= IMAGES
        assert runs(folder)[row["trial"]].info.status == ("FINISHED" if trained else "KILLED")
        assert (int(row["images"]) >= IMAGES) == (row["state"] == "finished")


def test_the_best_trial_comes_first_with_its_best_checkpoint(swept):
    folder, output = swept
    ranks = {}
    for row in table(folder)[:-1]:
        storage = open_storage(str(folder / "sweep" / "trials" / row["trial"]))
        names = commits.find(storage)[0]
        best = min(ranking.read(storage, names).items(), key=lambda item: item[1].rank)
        assert float(row["score"]) == best[1].rank
        assert row["checkpoint"] == storage.url(best[0].folder)
        ranks[row["trial"]] = best[1].rank
    assert [*ranks] == sorted(ranks, key=ranks.__getitem__)
    assert f"best: trial {table(folder)[0]['trial']}" in output


def test_a_collapsed_trial_ends_at_once_and_counts_as_the_worst(swept):
    folder, _ = swept
    row = table(folder)[-1]
    assert float(row["training.drift"]) == WEIGHTS[-1]
    assert row["score"] == ""
    assert int(row["images"]) < IMAGES
    assert "collapsed at" in row["reason"]


def test_a_collapse_that_its_sweep_did_not_live_to_record_is_told_as_before(digits, tmp_path):
    config = tiny_config(digits, tmp_path / "run")
    with open_run(config) as run:
        error = TrainingError("collapsed at 160 images: the losses are not finite")
        error.__cause__ = CollapseError(str(error))
        write_failure(run.storage, config, error)
    job = json.dumps({"config": config.model_dump(mode="json"), "parent": None})
    command = [sys.executable, "-m", "service.tuning.driver"]
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as driver:
        print(job, file=driver.stdin, flush=True)  # and it stays open, as long as the trial lives
        assert driver.stderr.read().strip().rpartition("\n")[2] == str(error)
    assert driver.returncode == COLLAPSED


def test_trials_are_nested_below_the_sweep_which_has_the_table_and_the_picture(swept):
    folder, _ = swept
    nested = runs(folder)
    parent = nested.pop("sweep")
    assert sorted(nested) == sorted(row["trial"] for row in table(folder))
    assert {run.data.tags["mlflow.parentRunId"] for run in nested.values()} == {parent.info.run_id}
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["sweep.best_trial"] == table(folder)[0]["trial"]
    logged = {file.path for file in client(folder).list_artifacts(parent.info.run_id)}
    assert {"trials.csv", "trials.md", "best.png", "config.yaml", "sweep.json"} <= logged
    grid_side = 10 * 34 - 2
    assert Image.open(folder / "sweep" / "best.png").size[0] >= grid_side


def test_the_best_checkpoint_is_registered_and_draws(swept):
    folder, output = swept
    assert "models:/sweep@best" in output
    version = client(folder).get_model_version_by_alias("sweep", "best")
    assert version.tags["gan.checkpoint"] == table(folder)[0]["checkpoint"]
    mlflow.set_tracking_uri(f"sqlite:///{folder}/sweep/mlflow.db")
    model = mlflow.pyfunc.load_model("models:/sweep@best")
    images = model.predict([{"class": 3, "seed": 1, "truncation": 0.5}, {"class": 4, "seed": 2}])
    assert (images.shape, images.dtype) == ((2, 32, 32, 1), np.uint8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"space": SPACE | {"training.r1": {"grid": [0.0, 1.0]}}}, r"space training\.r1: .*None"),
        ({"training": {"loss": "wgan"}}, r"training\.loss: .*'hinge'.*'wgan'"),
        ({"run": {"images": 480}}, "search end: .*640.*480"),
    ],
)
def test_another_sweep_in_the_same_folder_is_refused_naming_both_values(
    swept, digits, tmp_path, change, words
):
    folder, _ = swept
    values = yaml.safe_load((folder / "tiny.yaml").read_text())
    for section in ("training", "run"):
        values[section] |= change.get(section, {})
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(change.get("space", SPACE)))
    files = ["--config", str(tmp_path / "tiny.yaml"), "--space", str(tmp_path / "space.yaml")]
    same = [
        "--dir",
        str(folder / "sweep"),
        "--search",
        "grid",
        "--grace-images",
        str(EVERY),
        "--reduction",
        "2",
    ]
    with pytest.raises(UsageError, match=words):
        sweep.main([*files, *same])


# What is wrong is said before Ray starts ----------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "options", "words"),
    [
        ({"training.lr_discriminater": {"choice": [0.1]}}, [], r"did you mean training\.lr_discr"),
        ({}, [], "names no setting to sweep"),
        ({"training": {"d_steps": {"choice": [1, 2]}}}, [], r"training: is a section; write .*\.NAME"),
        (SPACE, ["--search", "random"], "grid works only with --search grid"),
        (SPACE, ["--search", "optuna"], "grid works only with --search grid"),
        (R1, ["--search", "grid"], "uniform lists no values"),
        (SPACE, ["--search", "grid", "--trials", "7"], "the grid has 3 points"),
        (SPACE, ["--search", "best"], "--search best: choose random, grid or optuna"),
        (R1, ["--trials", "0"], "--trials 0: give a whole number from 1"),
        (R1, ["--grace-images", "641"], "beyond the 640 images"),
        (R1, ["--model", "a/b"], "--model 'a/b': give a name without"),
        (R1, ["--dir", "runs/a.b"], "--model 'a.b': give a name without"),
        (R1, ["--alias", "v1"], "--alias v1: give letters, digits"),
        (R1, ["--dir", ""], "--dir: empty"),
        (R1, ["--seed", "9999999999"], "--seed 9999999999: give a whole number from 0 to 2147483647"),
        (R1, ["--trails", "3"], r"--trails: no such setting; did you mean --trials\?"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(digits, tmp_path, space, options, words):
    with pytest.raises(UsageError, match=words):
        sweep.main([*write(tmp_path, digits, space), *options])
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_does_not_start_in_the_folder_of_a_run(digits, tmp_path):
    arguments = write(tmp_path, digits, {"training.r1": {"uniform": [0, 1]}})
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "run.json").touch()
    with pytest.raises(UsageError, match="holds a run; choose another --dir"):
        sweep.main(arguments)
    assert not (tmp_path / "sweep" / "sweep.json").exists()


def test_a_run_does_not_start_in_the_folder_of_a_sweep(digits, tmp_path):
    (tmp_path / "sweep.json").touch()
    refused = pytest.raises(UsageError, match=r"holds a sweep; choose another --run\.dir")
    with refused, open_run(tiny_config(digits, tmp_path)):
        pass
    assert not (tmp_path / "run.json").exists()


def test_bad_usage_exits_with_2_and_no_traceback(digits, tmp_path):
    code, output = run_command("service.sweep", *write(tmp_path, digits)[:2])
    assert (code, "--space: not given" in output) == (2, True), output
    assert "Traceback" not in output
