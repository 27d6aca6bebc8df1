"""The command, end to end on real Ray workers: it finishes, and it refuses what is wrong."""

import json
import os
import subprocess
import time
import urllib.parse
from pathlib import Path

import mlflow
import psutil
import pytest
import torch
import yaml
from PIL import Image

from service import train
from service.errors import DataError, StorageError, UsageError
from service.recording.pictures import CAPTION_PIXELS
from service.run import checkpoint, commits
from service.storage import open_storage
from tests.conftest import run_command, start_command, tiny_values
from tests.live import LOOPBACK, listening, scrape

IMAGES = 1280
LIMIT_S = 300


@pytest.fixture(scope="module")
def trained(digits, stack, tmp_path_factory) -> tuple[Path, str]:
    """A small run of two workers, looked at while it runs, and its output."""
    folder = tmp_path_factory.mktemp("trained")
    targets = Path(stack.environment["GAN_PROMETHEUS_TARGETS"])
    scraped_before = set(targets.iterdir())
    driver = start_command("service.train", *arguments(digits, folder), **stack.environment)
    try:
        first = served_while_it_runs(driver)
        assert len(set(targets.iterdir()) - scraped_before) == 1
        rest, _ = driver.communicate(timeout=LIMIT_S)
    finally:
        driver.kill()
    assert driver.returncode == 0, first + rest
    assert set(targets.iterdir()) == scraped_before
    return folder / "run", first + rest


def arguments(digits: Path, folder: Path) -> list[str]:
    values = tiny_values(
        digits,
        folder / "run",
        run={"images": IMAGES},
        scale={"workers": 2},
        checkpoint={"every_images": 160},
        tracking={"every_images": 80, "pictures_every_images": 800},
    )
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(values))
    return ["--config", str(file)]


def history(run: Path, metric: str) -> list[tuple[int, float]]:
    client = mlflow.MlflowClient(f"sqlite:///{run}/mlflow.db")
    points = client.get_metric_history(mlflow_run(run).info.run_id, metric)
    return sorted((point.step, point.value) for point in points)


def mlflow_run(run: Path):
    client = mlflow.MlflowClient(f"sqlite:///{run}/mlflow.db")
    experiment = client.get_experiment_by_name("gan-training")
    (run_there,) = client.search_runs([experiment.experiment_id])
    return run_there


def final(run: Path) -> tuple[checkpoint.Tensors, commits.Manifest]:
    storage = open_storage(str(run))
    return checkpoint.read(storage, commits.find(storage)[0][-1])


def test_a_run_ends_with_checkpoint_pictures_and_a_finished_mlflow_run(trained):
    run, output = trained
    assert "rehearsal passed" in output
    assert str(run / "pictures" / f"grid-{IMAGES:012d}.png") in output
    assert final(run)[1].state.clock == IMAGES
    recorded = mlflow_run(run)
    assert recorded.info.status == "FINISHED"
    assert recorded.data.params["model.width"] == "4"
    assert recorded.data.tags["data.fingerprint"]
    assert recorded.data.tags["version.torch"] == torch.__version__
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    assert recorded.data.tags["mlflow.source.git.commit"] == (commit.stdout.strip() or "unknown")


def test_its_logs_and_where_it_stands_are_in_its_directory(trained):
    run, _ = trained
    lines = [json.loads(line) for line in (run / "logs" / "worker-0.jsonl").read_text().splitlines()]
    commits_told = [line for line in lines if line.get("event") == "checkpoint"]
    assert len(commits_told) == IMAGES // 160
    for line in commits_told:
        assert {"time", "host", "message"} <= line.keys()
        assert (line["run"], line["role"], line["rank"], line["attempt"]) == (run.name, "worker", 0, 0)
    code, output = run_command("service.status", str(run), "--json")
    assert code == 0, output
    told = json.loads(output)
    assert (told["state"], told["clock"], told["end"]) == ("finished", IMAGES, IMAGES)
    assert told["checkpoint"]["age_s"] > 0


def test_every_curve_has_a_point_at_every_interval_and_no_other(trained):
    clocks = list(range(80, IMAGES + 1, 80))
    for metric in ("loss_d", "loss_g", "margin", "grad_norm_d", "grad_norm_g", "images_per_s",
                   "data_wait_share", "data_wait_share_largest", "data_wait_rank", "resolution", "alpha",
                   "pace_s", "slowest_worker", "slowest_worker_rank",
                   "data_requests", "data_bytes", "data_retries", "bad_samples", "cache_hits",
                   "cache_misses", "storage_retries"):  # fmt: skip
        assert [step for step, _ in history(trained[0], metric)] == clocks, metric


def test_grids_show_the_panel_one_class_a_column(trained):
    run, _ = trained
    pictures = sorted((run / "pictures").glob("grid-*.png"))
    assert [int(p.stem.split("-")[1]) for p in pictures] == [800, IMAGES]
    for picture in pictures:
        assert Image.open(picture).size == (10 * 34 - 2, CAPTION_PIXELS + 2 * 34 - 2)
    client = mlflow.MlflowClient(f"sqlite:///{run}/mlflow.db")
    logged = client.list_artifacts(mlflow_run(run).info.run_id, "images")
    assert len([f for f in logged if f.path.endswith(".png")]) == 2


def test_mlflow_lists_the_classes_by_label_name_and_count(trained):
    run, _ = trained
    client = mlflow.MlflowClient(f"sqlite:///{run}/mlflow.db")
    found = mlflow_run(run)
    assert found.data.tags["data.classes"] == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    lines = Path(client.download_artifacts(found.info.run_id, "classes.tsv")).read_text().splitlines()
    assert lines[:2] == ["label\timages\tname", "0\t178\t0"]
    assert len(lines) == 11


def test_checkpoints_are_recorded_in_mlflow_with_their_address_and_digests(trained):
    run, _ = trained
    client = mlflow.MlflowClient(f"sqlite:///{run}/mlflow.db")
    run_id = mlflow_run(run).info.run_id
    assert len(client.list_artifacts(run_id, "checkpoints")) == IMAGES // 160
    path = client.download_artifacts(run_id, f"checkpoints/{IMAGES:012d}.json")
    described = json.loads(Path(path).read_text())
    assert (Path(described["address"]) / "ema.pt").exists()
    assert described["files"] == final(run)[1].model_dump()["files"]


def served_while_it_runs(driver: subprocess.Popen) -> str:
    """Its live values are at the address that it prints; the output until then."""
    output = ""
    while "live values at" not in output:
        line = driver.stdout.readline()
        assert line, output
        output += line
    port = urllib.parse.urlsplit(output.split()[-1]).port
    wait_for(lambda: scrape(port).get("gan_images", 0) >= 80, driver)
    values = scrape(port)
    assert (values["gan_up"], values["gan_workers"], values["gan_failed"]) == (1, 2, 0)
    assert values["gan_data_bytes"] > 0
    assert 0 <= values["gan_data_wait_share"] <= 1
    assert values["gan_left_seconds"] >= 0
    assert values["gan_run_dir_free_bytes"] > 0
    assert listening([psutil.Process(driver.pid)]) <= LOOPBACK
    return output


def wait_for(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


# What is wrong is said before Ray starts ----------------------------------------------------------


def refused(values: dict, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump(values))
    train.main(["--config", str(file)])


@pytest.mark.slow
def test_exit_codes_tell_a_failed_run_from_bad_usage(tmp_path):
    nowhere = ["--data.url", str(tmp_path / "nowhere"), "--run.dir", str(tmp_path / "run")]
    code, output = run_command("service.train", "--preset", "digits", *nowhere)
    assert (code, "python -m service.pack" in output) == (3, True), output
    assert "Traceback" not in output
    code, output = run_command("service.train", "--preset", "digits", "--model.widht", "3")
    assert (code, "--model.width" in output) == (2, True), output


def test_another_configuration_on_the_same_run_is_refused_naming_both_values(trained, digits, tmp_path):
    run, _ = trained
    values = yaml.safe_load((run.parent / "tiny.yaml").read_text())
    values["training"]["lr_generator"] = 0.25
    before = sorted(p.name for p in run.rglob("*"))
    with pytest.raises(UsageError, match=r"training\.lr_generator: .*0\.0005.*0\.25"):
        refused(values, tmp_path)
    assert sorted(p.name for p in run.rglob("*")) == before


def test_a_finished_run_again_does_nothing(trained, digits, stack):
    run, _ = trained
    before = final(run)[1]
    code, output = run_command(
        "service.train", "--config", str(run.parent / "tiny.yaml"), **stack.environment
    )
    assert code == 0, output
    assert final(run)[1] == before


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"model": {"classes": 9}}, DataError, "label 9 is outside"),
        ({"model": {"channels": 3}}, DataError, "the data has 1 channels"),
        ({"data": {"lanes": 65536}, "scale": {"workers": 1}}, DataError, r"data\.lanes"),
        ({"data": {"url": "s3://no-such-bucket/x"}}, StorageError, "no such bucket"),
        ({"run": {"dir": "s3://gan/run"}}, UsageError, r"tracking\.uri: not given"),
        ({"tracking": {"uri": "http://me:secret@host"}}, UsageError, "holds a user"),
    ],
)
def test_what_does_not_fit_is_refused_before_ray_starts(digits, s3, tmp_path, change, error, words):
    with pytest.raises(error, match=words) as raised:
        refused(tiny_values(digits, tmp_path / "run", **change), tmp_path)
    assert "secret" not in str(raised.value)
    assert not (tmp_path / "run" / "run.json").exists()


RUN_JSON = {"version": 2, "key": "5f1d" * 8, "fingerprint": "f" * 64, "config": {}}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", r"damaged \(.*restore it from a copy, or choose another --run\.dir"),
        ("", "damaged"),
        ("[]", "damaged"),
        ("\0", "damaged"),
        ("{}", "has no version, but this service reads version 2; use the version of the service"),
        ('{"key": 1}', "has no version"),
        ('{"config": 3}', "has no version"),
        (json.dumps(RUN_JSON | {"version": 1}), "has version 1, but this service reads version 2"),
        (json.dumps(RUN_JSON | {"version": "2"}), 'has version "2", but this service reads version 2'),
        (json.dumps(RUN_JSON | {"more": 1}), r"damaged \(more: Extra inputs are not permitted\)"),
        (json.dumps(RUN_JSON | {"key": ""}), r"damaged \(key: String should match pattern"),
        (json.dumps(RUN_JSON | {"key": 1}), r"damaged \(key: Input should be a valid string\)"),
        (json.dumps(RUN_JSON | {"config": 3}), r"damaged \(config: Input should be an object\)"),
        ('{"version": 2}', r"damaged \(key: Field required\)"),
    ],
)
def test_a_run_json_that_is_damaged_or_of_another_version_is_named(digits, tmp_path, content, words):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(content)
    with pytest.raises(DataError, match=rf"^{tmp_path}/run/run\.json: ({words})"):
        refused(tiny_values(digits, tmp_path / "run"), tmp_path)
    assert (tmp_path / "run" / "run.json").read_text() == content


@pytest.mark.slow
def test_a_ray_that_does_not_answer_is_named(digits, tmp_path):
    code, output = run_command(
        "service.train",
        *arguments(digits, tmp_path),
        RAY_ADDRESS="127.0.0.1:1",
        RAY_AUTH_MODE="disabled",
    )
    assert (code, "RAY_ADDRESS 127.0.0.1:1" in output) == (1, True), output
    assert "Traceback" not in output


def test_relative_paths_are_refused_inside_a_submitted_job(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(UsageError, match=r"run\.dir: runs/x is a relative path"):
        refused(tiny_values(digits, "runs/x"), tmp_path)


def test_print_config_resolves_and_starts_nothing(digits, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret-value")
    monkeypatch.chdir(tmp_path)
    train.main(["--preset", "digits", "--print-config"])
    shown = capsys.readouterr().out
    values = yaml.safe_load(shown)
    assert values["run"]["dir"] == str(tmp_path / "runs" / "digits")
    assert values["training"]["precision"] in ("bf16", "fp32")
    assert "very-secret-value" not in shown
    assert os.listdir(tmp_path) == []
