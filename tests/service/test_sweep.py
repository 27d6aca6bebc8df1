"""The command, end to end on a real Ray: killed, resumed, reported, registered; and what it refuses."""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import psutil
import pytest
import yaml
from PIL import Image

from service import sweep
from service.collapse.response import CollapseError
from service.driver.preflight import open_run
from service.errors import TrainingError, UsageError
from service.run import commits, ranking
from service.run.failure import write_failure
from service.storage import Storage, open_storage
from service.storage.lock import read_holder
from service.tuning.driver import COLLAPSED
from tests.conftest import assert_no_secrets, run_command, start_command, tiny_config, tiny_values

pytestmark = pytest.mark.slow

LIMIT_S = 600
IMAGES = 480
LONGER_IMAGES = 960  # enough that a second trial is stopped before its end
WEIGHTS = [0.0, 1.0e39]  # the last is beyond fp32: losses are infinite
SPACE = {"training.drift": {"grid": WEIGHTS}}
R1 = {"training.r1": {"uniform": [0, 1]}}


def write(
    folder: Path, digits: Path | str, space: Any = SPACE, images: int = IMAGES, every: int = 80
) -> list[str]:
    """The arguments of a sweep of small runs, too short to collapse but for numbers that overflow.

    They look, commit and score `every` so many images.
    """
    values = tiny_values(
        digits,
        folder / "run",
        run={"images": images},
        checkpoint={"every_images": every},
        tracking={"every_images": every, "pictures_every_images": 3 * every},
        evaluation={"images": 64, "scores": ["swd"], "best": "swd"},
    )
    values["phases"] = [{"resolution": 32, "hold_images": images, "batch": 16}]
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    (folder / "space.yaml").write_text(yaml.safe_dump(space))
    return ["--config", str(folder / "tiny.yaml"), "--space", str(folder / "space.yaml"),
            "--dir", str(folder / "sweep")]  # fmt: skip


# One sweep, which is treated badly ----------------------------------------------------------------


@pytest.fixture(scope="module")
def swept(digits, stack, tmp_path_factory) -> tuple[Path, str]:
    """A grid of two trials; a trial's driver and then the sweep's own were killed, and it resumed."""
    folder = tmp_path_factory.mktemp("swept")
    command = [*write(folder, digits), "--search", "grid", "--scheduler", "none"]
    process = start_command("service.sweep", *command, **stack.environment)
    try:
        wait_for(lambda: newest(folder), process)
        trial, first = newest(folder)
        holder, _ = read_holder(trial)
        psutil.Process(holder.pid).kill()
        wait_for(lambda: newest(folder)[1].token > first.token, process)
    finally:
        process.kill()
        process.wait()
    code, output = run_command("service.sweep", *command, **stack.environment)
    assert code == 0, output
    return folder, output


def newest(folder: Path) -> tuple[Storage, commits.Name] | None:
    """The newest checkpoint of all trials, and the trial's directory."""
    trials = [open_storage(str(path)) for path in (folder / "sweep" / "trials").glob("*")]
    found = [(name, trial) for trial in trials for name in commits.find(trial)[0]]
    name, trial = max(found, key=lambda each: each[0], default=(None, None))
    return name and (trial, name)


def wait_for(condition, process) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep" / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def client(folder: Path) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(f"sqlite:///{folder}/sweep/mlflow.db")


def runs(folder: Path) -> dict[str, Any]:
    """MLflow's runs by name."""
    experiment = client(folder).get_experiment_by_name("gan-training")
    return {run.info.run_name: run for run in client(folder).search_runs([experiment.experiment_id])}


def test_a_killed_sweep_and_a_killed_trial_end_with_every_point_of_the_grid_once(swept):
    folder, _ = swept
    rows = table(folder)
    assert sorted(float(row["training.drift"]) for row in rows) == WEIGHTS
    assert len(list((folder / "sweep" / "trials").iterdir())) == len(WEIGHTS)
    assert [row["state"] for row in rows] == ["finished", "collapsed"]


def test_credentials_appear_nowhere(swept, stack):
    _, output = swept
    assert_no_secrets(stack, {"the sweep's output": output})


def test_a_trial_trains_to_the_end_whatever_befell_it_and_is_in_order(swept):
    folder, _ = swept
    row = table(folder)[0]
    storage = open_storage(str(folder / "sweep" / "trials" / row["trial"]))
    assert commits.find(storage)[0][-1].clock == IMAGES
    holder, _ = read_holder(storage)
    assert holder is not None
    assert holder.pid == 0
    assert runs(folder)[row["trial"]].info.status == "FINISHED"


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
    trials = runs(folder)
    parent = trials.pop("sweep")
    assert sorted(trials) == sorted(row["trial"] for row in table(folder))
    assert {run.data.tags["mlflow.parentRunId"] for run in trials.values()} == {parent.info.run_id}
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
        ({"run": {"images": 960}}, "search end: .*480.*960"),
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
    same = ["--dir", str(folder / "sweep"), "--search", "grid", "--scheduler", "none"]
    with pytest.raises(UsageError, match=words):
        sweep.main([*files, *same])


# Another, which is not -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def searched(digits, stack, tmp_path_factory) -> tuple[Path, str]:
    """Two trials that optuna chose, one after the other, with successive halving."""
    folder = tmp_path_factory.mktemp("searched")
    space = {
        "training.lr_generator": {"loguniform": [1e-5, 1e-3]},
        "training.d_steps": {"choice": [1, 2]},
    }
    command = write(folder, digits, space, LONGER_IMAGES, every=160)
    halving = ["--grace-images", "160", "--reduction", "2", "--concurrent", "1"]
    optuna = ["--search", "optuna", "--trials", "2"]
    code, output = run_command("service.sweep", *command, *optuna, *halving, **stack.environment)
    assert code == 0, output
    return folder, output


def test_halving_leaves_what_it_stops_in_order(searched):
    folder, _ = searched
    for row in table(folder):
        storage = open_storage(str(folder / "sweep" / "trials" / row["trial"]))
        holder, _ = read_holder(storage)
        assert holder is not None
        assert holder.pid == 0
        # one that is to stop after its second score may have trained to the end when that is known
        trained = commits.newest_clock(storage) >= LONGER_IMAGES
        assert runs(folder)[row["trial"]].info.status == ("FINISHED" if trained else "KILLED")
        assert (int(row["images"]) >= LONGER_IMAGES) == (row["state"] == "finished")
    assert len(table(folder)) == 2


def test_the_best_trial_comes_first_with_its_best_checkpoint(searched):
    folder, output = searched
    ranks = {}
    for row in table(folder):
        storage = open_storage(str(folder / "sweep" / "trials" / row["trial"]))
        names = commits.find(storage)[0]
        best = min(ranking.read(storage, names).items(), key=lambda item: item[1].rank)
        assert float(row["score"]) == best[1].rank
        assert row["checkpoint"] == storage.url(best[0].folder)
        ranks[row["trial"]] = best[1].rank
    assert [*ranks] == sorted(ranks, key=ranks.__getitem__)
    assert f"best: trial {table(folder)[0]['trial']}" in output


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
        (SPACE, ["--search", "grid", "--trials", "7"], "the grid has 2 points"),
        (SPACE, ["--search", "best"], "--search best: choose random, grid or optuna"),
        (R1, ["--trials", "0"], "--trials 0: give a whole number from 1"),
        (R1, ["--grace-images", "481"], "beyond the 480 images"),
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
