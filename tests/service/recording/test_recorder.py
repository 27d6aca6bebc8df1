"""The recorder against a real MLflow server that goes away and comes back, and its /metrics."""

import io
import json
import re
import socket
import time
import urllib.request
from dataclasses import replace

import mlflow
import numpy as np
import pytest
from PIL import Image

from service.recording.mlflow import Description
from service.recording.pictures import grid_png
from service.recording.prometheus import LiveMetrics
from service.recording.record import Record
from service.recording.recorder import Recorder


def describe(uri: str, key: str) -> Description:
    return Description(
        uri=uri,
        experiment="recorder-test",
        artifacts=None,
        key=key,
        name=key,
        parameters={"model.width": "4"},
        tags={"data.fingerprint": "abc"},
        texts={"config.yaml": "run: {}"},
    )


def start(folder, description: Description) -> Recorder:
    return Recorder(str(folder), description, "127.0.0.1", 0, retry_s=1)


def record(images: int) -> Record:
    return Record(images, 1_700_000_000.0 + images, values={"loss_d": images / 3})


def wait_for(condition, limit_s: float = 120.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def scrape(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {k: float(v) for k, v in (line.split() for line in lines if not line.startswith("#"))}


def test_mlflow_away_for_a_while_misses_nothing_and_gets_nothing_twice(stack, s3, tmp_path):
    uri = stack.environment["MLFLOW_TRACKING_URI"]
    port = int(uri.rpartition(":")[2])
    proxy = Switch(port)
    description = describe(f"http://127.0.0.1:{proxy.port}", tmp_path.name)
    recorder = start(tmp_path, description)
    for images in (16, 32):
        recorder.write(record(images))
    client = mlflow.MlflowClient(uri)

    def logged() -> list[tuple[int, int, float]]:
        experiment = client.get_experiment_by_name("recorder-test")
        runs = experiment and client.search_runs(
            [experiment.experiment_id], f"tags.`gan.run_key` = '{tmp_path.name}'"
        )
        if not runs:
            return []
        history = client.get_metric_history(runs[0].info.run_id, "loss_d")
        return sorted((m.step, m.timestamp, m.value) for m in history)

    wait_for(lambda: len(logged()) == 2)
    proxy.open = False
    for images in (48, 64):
        recorder.write(record(images))
    wait_for(lambda: recorder.latest()["trouble"])
    proxy.open = True
    picture = np.zeros((4, 8, 8, 1), np.uint8)
    recorder.draw(Record(64, 1_700_000_064.0), picture, columns=2, pixels=8)
    assert recorder.close("FINISHED", {}, limit_s=60) == ""

    # The same run again, as after a crash: it replays two points, and goes on.
    again = start(tmp_path, description)
    for images in (48, 64, 80):
        again.write(record(images))
    again.draw(Record(64, 1_700_000_064.0), picture, columns=2, pixels=8)
    assert again.close("FINISHED", {}, limit_s=60) == ""
    proxy.close()

    expected = [(n, (1_700_000_000 + n) * 1000, n / 3) for n in (16, 32, 48, 64, 80)]
    assert logged() == expected
    experiment = client.get_experiment_by_name("recorder-test")
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`gan.run_key` = '{tmp_path.name}'")
    assert run.info.status == "FINISHED"
    assert run.data.params == {"model.width": "4"}
    pictures = [f.path for f in client.list_artifacts(run.info.run_id, "images")]
    assert len([p for p in pictures if re.search(r"grid\Wstep\W64\W.*\.png", p)]) == 1


class Switch:
    """A port that leads to another, while it is open: the server behind it goes and comes."""

    def __init__(self, target: int):
        import threading

        self.target, self.open = target, True
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def _accept(self) -> None:
        import threading

        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            if not self.open:
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self.target))
            for a, b in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(a, b), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while self.open and (data := source.recv(65536)):
                sink.sendall(data)
        except OSError:
            pass
        source.close()
        sink.close()


def test_live_values_are_served_with_upness_and_the_age_of_the_checkpoint():
    live = LiveMetrics("127.0.0.1", 0)
    live.update(Record(640, 0.0, values={"loss_d": 1.5, "images": 640.0}))
    assert "gan_checkpoint_images" not in scrape(live.port)
    live.update(Record(320, time.time() - 100, checkpoint={"address": "there"}))
    values = scrape(live.port)
    assert (values["gan_loss_d"], values["gan_images"], values["gan_up"]) == (1.5, 640.0, 1.0)
    assert (values["gan_checkpoint_images"], values["gan_checkpoint_age_seconds"] >= 100) == (320, True)
    live.up(False)
    assert scrape(live.port)["gan_up"] == 0.0


def test_only_word_of_the_clock_is_progress():
    live = LiveMetrics("127.0.0.1", 0)

    def age() -> float:
        return scrape(live.port)["gan_progress_age_seconds"]

    wait_for(lambda: age() > 0.3)
    live.update(Record(0, 0.0, values={"checkpoint_every_images": 160.0}))
    live.update(Record(160, time.time(), checkpoint={"address": "there"}))
    assert age() > 0.3
    before = age()
    live.update(Record(16, 0.0, values={"images": 16.0}))
    assert age() < before


def announced(folder) -> list[dict]:
    return [target for file in folder.glob("*.json") for target in json.loads(file.read_text())]


@pytest.mark.parametrize(("status", "missed"), [("FINISHED", 0), ("KILLED", 0), ("FAILED", 1)])
def test_a_run_is_announced_to_prometheus_until_it_ends_and_missed_if_it_failed(
    tmp_path, status, missed
):
    targets = tmp_path / "targets"
    description = replace(
        describe(f"sqlite:///{tmp_path}/mlflow.db", "key"),
        name="faces",
        artifacts=(tmp_path / "artifacts").as_uri(),
    )
    recorder = Recorder(
        str(tmp_path / "run"), description, "127.0.0.1", 0, retry_s=1,
        intervals={"checkpoint_every_images": 160}, targets=str(targets),
    )  # fmt: skip
    (target,) = announced(targets)
    port = recorder.latest()["metrics_port"]
    assert target == {"targets": [f"127.0.0.1:{port}"], "labels": {"run": "faces"}}
    values = scrape(port)
    assert values["gan_checkpoint_every_images"] == 160
    assert values["gan_recorder_storage_retries"] == 0
    assert recorder.close(status, {}, limit_s=60) == ""
    assert len(announced(targets)) == missed
    assert [p.name for p in targets.iterdir()] == ["key.json"] * missed


def test_a_folder_for_targets_that_cannot_be_written_to_is_no_obstacle(tmp_path, caplog):
    (tmp_path / "file").touch()
    live = LiveMetrics("127.0.0.1", 0)
    live.announce(str(tmp_path / "file"), "key", "faces")
    live.withdraw()
    assert "event=target_not_written" in caplog.text
    assert scrape(live.port)["gan_up"] == 1.0


def test_a_run_on_all_addresses_is_announced_by_the_machines_name(tmp_path):
    live = LiveMetrics("0.0.0.0", 0)
    live.announce(str(tmp_path), "key", "faces")
    assert announced(tmp_path)[0]["targets"] == [f"{socket.gethostname()}:{live.port}"]


def test_a_port_that_is_taken_is_no_obstacle():
    first = LiveMetrics("127.0.0.1", 0)
    second = LiveMetrics("127.0.0.1", first.port)
    assert second.port not in (0, first.port)
    assert scrape(second.port)["gan_up"] == 1.0


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_holds_the_images_two_pixels_apart(channels):
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (6, 8, 8, channels), np.uint8)
    sheet = np.asarray(Image.open(io.BytesIO(grid_png(images, columns=3, pixels=16))))
    sheet = sheet.reshape(*sheet.shape[:2], channels)
    assert sheet.shape == (2 * 16 + 2, 3 * 16 + 2 * 2, channels)
    for i, image in enumerate(images):
        top, left = (i // 3) * 18, (i % 3) * 18
        tile = sheet[top : top + 16, left : left + 16]
        assert np.array_equal(tile[::2, ::2], image)
        assert np.array_equal(tile[1::2, 1::2], image)
    assert not sheet[16:18].any()
    assert not sheet[:, 16:18].any()
