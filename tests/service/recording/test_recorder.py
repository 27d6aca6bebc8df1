"""The recorder against a real MLflow server that goes away and comes back, and its /metrics."""

import re
import socket
import threading
import time
from dataclasses import replace

import mlflow
import numpy as np
import pytest

from service.collapse.state import Kind, Level, Verdict
from service.recording.mlflow import Description
from service.recording.pictures import GridLook
from service.recording.record import Event, EventAction, Note, Record, Refusal, SpanTime
from service.recording.recorder import Recorder
from service.recording.status import STATUS_KEY, StatusDocument
from service.storage import FolderStorage
from tests.live import announced, scrape, segments, wait_for


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


def local(folder) -> Description:
    """With MLflow's data base and files in this folder."""
    uri, artifacts = f"sqlite:///{folder}/mlflow.db", (folder / "artifacts").as_uri()
    return replace(describe(uri, "key"), name="faces", artifacts=artifacts)


def start(folder, description: Description) -> Recorder:
    return Recorder(str(folder), description, "127.0.0.1", 0, retry_s=1, end=1000)


def record(clock: int) -> Record:
    values = {"loss_d": clock / 3, "spectrum.generator.dense.weight.0": 2.0}
    return Record(clock, 1_700_000_000.0 + clock, values=values)


def points(uri: str, key: str) -> list[tuple[int, int, float]]:
    """(step, timestamp, value) of the discriminator's losses of the run of this key."""
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("recorder-test")
    runs = experiment and client.search_runs([experiment.experiment_id], f"tags.`gan.run_key` = '{key}'")
    if not runs:
        return []
    history = client.get_metric_history(runs[0].info.run_id, "loss_d")
    return sorted((m.step, m.timestamp, m.value) for m in history)


def test_mlflow_away_for_a_while_misses_nothing_and_gets_nothing_twice(stack, s3, tmp_path):
    uri = stack.environment["MLFLOW_TRACKING_URI"]
    port = int(uri.rpartition(":")[2])
    proxy = Switch(port)
    description = describe(f"http://127.0.0.1:{proxy.port}", tmp_path.name)
    recorder = start(tmp_path, description)
    for clock in (16, 32):
        recorder.write(record(clock))
    client = mlflow.MlflowClient(uri)
    wait_for(lambda: len(points(uri, tmp_path.name)) == 2)
    proxy.open = False
    for clock in (48, 64):
        recorder.write(record(clock))
    wait_for(lambda: recorder.latest()["trouble"])
    proxy.open = True
    picture = np.zeros((4, 8, 8, 1), np.uint8)
    recorder.draw(Record(64, 1_700_000_064.0), picture, GridLook(2, 8))
    assert recorder.close("FINISHED", {}, limit_s=60) == ""

    # The same run again, as after a crash: it replays two points, and goes on.
    again = start(tmp_path, description)
    for clock in (48, 64, 80):
        again.write(record(clock))
    again.draw(Record(64, 1_700_000_064.0), picture, GridLook(2, 8))
    assert again.close("FINISHED", {}, limit_s=60) == ""
    proxy.close()

    expected = [(n, (1_700_000_000 + n) * 1000, n / 3) for n in (16, 32, 48, 64, 80)]
    assert points(uri, tmp_path.name) == expected
    experiment = client.get_experiment_by_name("recorder-test")
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`gan.run_key` = '{tmp_path.name}'")
    assert run.info.status == "FINISHED"
    assert run.data.params == {"model.width": "4"}
    pictures = [f.path for f in client.list_artifacts(run.info.run_id, "images")]
    assert len([p for p in pictures if re.search(r"grid\Wstep\W64\W.*\.png", p)]) == 1
    pages = [f.path for f in client.list_artifacts(run.info.run_id, "pictures")]
    assert pages == ["pictures/spectra.png"]


class Switch:
    """A port that leads to another, while it is open: the server behind it goes and comes.

    While it is `silent` it takes connections and requests, and answers nothing.
    """

    def __init__(self, target: int, silent: bool = False):
        self.target, self.open, self.silent = target, True, silent
        self.kept: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def speak(self) -> None:
        """Be silent no longer: who waits is hung up on, and may try again."""
        self.silent = False
        for client in self.kept:
            client.close()

    def close(self) -> None:
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            if self.silent:
                self.kept.append(client)
                continue
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


def test_an_mlflow_that_never_answers_holds_up_a_close_no_longer_than_its_limit(stack, s3, tmp_path):
    uri = stack.environment["MLFLOW_TRACKING_URI"]
    proxy = Switch(int(uri.rpartition(":")[2]), silent=True)
    recorder = start(tmp_path, describe(f"http://127.0.0.1:{proxy.port}", tmp_path.name))
    recorder.write(record(16))
    wait_for(lambda: proxy.kept)  # MLflow is asked, and says nothing
    limit_s = 2.0
    before = time.monotonic()
    reason = recorder.close("FINISHED", {}, limit_s)
    ratio = (time.monotonic() - before) / limit_s
    assert 1 <= ratio < 2.5
    assert reason == "MLflow did not answer within 2 s"
    assert segments(FolderStorage(str(tmp_path)))
    # What is left goes on its way once it answers.
    proxy.speak()
    assert recorder.close("FINISHED", {}, limit_s=120) == ""
    assert points(uri, tmp_path.name) == [(16, 1_700_000_016_000, 16 / 3)]
    assert not segments(FolderStorage(str(tmp_path)))
    proxy.close()


def test_an_mlflow_that_is_away_at_the_end_is_told_with_its_own_words(stack, s3, tmp_path):
    uri = stack.environment["MLFLOW_TRACKING_URI"]
    proxy = Switch(int(uri.rpartition(":")[2]))
    proxy.open = False
    recorder = start(tmp_path, describe(f"http://127.0.0.1:{proxy.port}", tmp_path.name))
    recorder.write(record(16))
    wait_for(lambda: recorder.latest()["trouble"])
    limit_s = 2.0
    before = time.monotonic()
    reason = recorder.close("FINISHED", {}, limit_s)
    assert (time.monotonic() - before) / limit_s < 2.5
    assert re.match(rf"MlflowException: .*http://127\.0\.0\.1:{proxy.port}", reason)
    assert segments(FolderStorage(str(tmp_path)))
    proxy.open = True
    assert recorder.close("FINISHED", {}, limit_s=120) == ""
    assert not segments(FolderStorage(str(tmp_path)))
    proxy.close()


@pytest.mark.slow
def test_the_latest_are_the_clock_the_values_and_the_notes_that_were_last_seen(tmp_path):
    recorder = start(tmp_path / "run", local(tmp_path))
    forecast = (SpanTime(0, 96, 16, 0.5),)
    verdict = Verdict(Level.WARNING, Kind.DIVERGENCE, "words", 16)
    recorder.write(Record(0, 0.0, note=Note(forecast=forecast)))
    recorder.write(Record(16, 1.0, values={"loss_d": 1.0, "loss_g": 2.0}, note=Note(stage="hold 8 px")))
    recorder.write(Record(32, 2.0, values={"loss_d": 3.0}, note=Note(verdict=verdict)))
    latest = recorder.latest()
    assert latest.pop("metrics_port") > 0
    assert latest.pop("still") == ""
    assert latest == {
        "clock": 32, "loss_d": 3.0, "loss_g": 2.0, "stage": "hold 8 px", "forecast": forecast,
        "verdict": verdict, "trouble": "",
    }  # fmt: skip
    assert recorder.close("FINISHED", {}, limit_s=60) == ""


@pytest.mark.slow
@pytest.mark.parametrize(("status", "missed"), [("FINISHED", 0), ("KILLED", 0), ("FAILED", 1)])
def test_a_run_is_announced_to_prometheus_until_it_ends_and_missed_if_it_failed(
    tmp_path, status, missed
):
    targets = tmp_path / "targets"
    recorder = Recorder(
        str(tmp_path / "run"), local(tmp_path), "127.0.0.1", 0, retry_s=1, end=1000,
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


@pytest.mark.slow
def test_a_score_of_an_earlier_clock_does_not_turn_the_clock_back(tmp_path):
    recorder = start(tmp_path, local(tmp_path))
    recorder.write(Record(320, 1.0, values={"images": 320.0}))
    recorder.write(Record(160, 2.0, scores={"fid": 3.0}))
    recorder.write(Record(160, 2.0, checkpoint={"address": "there"}))
    assert recorder.latest()["clock"] == 320
    assert recorder.close("FINISHED", {}, 120) == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "error"), [("FINISHED", ""), ("KILLED", ""), ("FAILED", "no bucket: make it")]
)
def test_it_writes_where_the_run_stands_and_how_it_ended(tmp_path, status, error):
    recorder = start(tmp_path, local(tmp_path))
    recorder.write(Record(160, 1.0, 2, values={"images": 160.0, "images_per_s": 10.0, "x.y": 1.0}))
    recorder.write(Record(160, 5.0, checkpoint={"address": "there"}))

    def told() -> StatusDocument:
        return StatusDocument.from_bytes((tmp_path / STATUS_KEY).read_bytes(), STATUS_KEY)

    wait_for((tmp_path / STATUS_KEY).exists)
    assert (told().status, told().clock, told().end, told().attempt) == ("RUNNING", 160, 1000, 2)
    assert told().left_s == 84
    assert told().values.keys() == {"images", "images_per_s"}
    assert told().checkpoint_time == 5.0
    recorder.write(Record(160, 6.0, event=Event(EventAction.RESTART, "a worker died")))
    assert recorder.close(status, {}, 120, error) == ""
    assert (told().status, told().error) == (status, error)


@pytest.mark.slow
def test_what_mlflow_refuses_is_set_aside_and_told_and_the_run_ends_well(tmp_path):
    description = local(tmp_path)
    recorder = start(tmp_path, description)
    recorder.write(record(16))
    recorder.write(Record(32, 2.0, values={"loss_d": 2.0, "loss*d": 2.0}))
    recorder.write(Record(32, 2.0, picture="pictures/that-is-gone.png"))
    recorder.write(record(48))
    assert recorder.close("FINISHED", {}, 120) == ""
    assert [step for step, _, _ in points(description.uri, "key")] == [16, 32, 48]
    storage = FolderStorage(str(tmp_path))
    aside = [Refusal.from_bytes(storage.get(key), key) for key in storage.sizes("refused/")]
    assert {(each.record.clock, each.what) for each in aside} == {(32, "loss*d"), (32, "picture")}
    assert segments(storage) == []
    (run,) = mlflow.MlflowClient(description.uri).search_runs(["1"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["gan.refused"] == "2, see refused/ in run.dir"


@pytest.mark.slow
def test_curves_do_not_wait_for_files_whose_place_is_away(tmp_path, monkeypatch):
    description, away = local(tmp_path), threading.Event()
    away.set()
    log_text = mlflow.MlflowClient.log_text

    def fail_while_away(*given) -> None:
        if away.is_set() and given[-1].startswith("checkpoints/"):
            raise ConnectionError("the artifacts' store is away")
        log_text(*given)

    monkeypatch.setattr(mlflow.MlflowClient, "log_text", fail_while_away)
    recorder = start(tmp_path, description)
    recorder.write(Record(16, 1.0, checkpoint={"address": "there"}))
    wait_for(lambda: "store is away" in recorder.latest()["trouble"])
    recorder.write(record(32))
    wait_for(lambda: [step for step, _, _ in points(description.uri, "key")] == [32])
    away.clear()
    assert recorder.close("FINISHED", {}, 120) == ""
    (run,) = mlflow.MlflowClient(description.uri).search_runs(["1"])
    listed = mlflow.MlflowClient(description.uri).list_artifacts(run.info.run_id, "checkpoints")
    assert [file.path for file in listed] == ["checkpoints/000000000016.json"]
    assert "gan.refused" not in run.data.tags
