"""The run in MLflow: events on its timeline, checkpoints as files, attempts as runs below it."""

import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import replace

import mlflow
import pytest

from service.errors import UsageError
from service.recording.mlflow import Description, MlflowLog, check_store
from service.recording.record import Event, EventAction, Record


@pytest.fixture
def description(tmp_path) -> Description:
    return Description(
        uri=f"sqlite:///{tmp_path}/mlflow.db",
        experiment="mlflow-test",
        artifacts=(tmp_path / "artifacts").as_uri(),
        key="key",
        name="faces",
    )


def nothing(key: str) -> bytes:
    raise AssertionError(f"nobody asked for {key}")


def deliver(log: MlflowLog, records: list[Record]) -> None:
    """All of the records, which hold no picture, and MLflow takes them."""
    assert log.log_points(records) == []
    assert log.log_files(records, nothing) == []


def content(client: mlflow.MlflowClient, run_id: str, folder: str) -> dict[str, dict]:
    """The JSON files that a run has in a folder, by name."""
    files = [file.path for file in client.list_artifacts(run_id, folder)]
    return {
        file.rpartition("/")[2]: json.loads(
            mlflow.artifacts.load_text(artifact_uri(client, run_id, file))
        )
        for file in files
    }


def artifact_uri(client: mlflow.MlflowClient, run_id: str, file: str) -> str:
    return f"{client.get_run(run_id).info.artifact_uri}/{file}"


@pytest.mark.slow
def test_events_are_on_the_timeline_by_their_clock_and_the_last_of_a_kind_is_a_tag(description):
    log = MlflowLog(description)
    events = (
        (160, 0, Event(EventAction.ALERT, "little variety", {"kind": "mode_collapse"})),
        (176, 0, Event(EventAction.REWIND, "lost it", {"at": 208, "checkpoint": "there"})),
        (176, 1, Event(EventAction.REWIND, "again", {"at": 240, "checkpoint": "there"})),
    )
    deliver(log, [Record(clock, 1.0, attempt, event=event) for clock, attempt, event in events])
    client, run_id = mlflow.MlflowClient(description.uri), log.open()
    assert content(client, run_id, "timeline") == {
        "000000000160-0-alert.json": {
            "clock": 160, "attempt": 0, "action": "alert", "reason": "little variety",
            "kind": "mode_collapse",
        },
        "000000000176-0-rewind.json": {
            "clock": 176, "attempt": 0, "action": "rewind", "reason": "lost it", "at": 208,
            "checkpoint": "there",
        },
        "000000000176-1-rewind.json": {
            "clock": 176, "attempt": 1, "action": "rewind", "reason": "again", "at": 240,
            "checkpoint": "there",
        },
    }  # fmt: skip
    tags = client.get_run(run_id).data.tags
    assert tags["gan.alert"] == "at 160: little variety"
    assert tags["gan.rewind"] == "at 176: again"


@pytest.mark.slow
def test_a_run_that_a_crash_left_without_its_description_is_found_again_and_completed(
    description, monkeypatch
):
    described = replace(description, parameters={"a": "1"}, texts={"config.yaml": "a: 1"})
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "log_text", crash)
        with pytest.raises(KeyboardInterrupt):
            MlflowLog(described).log_files([], nothing)
    more = replace(described, parameters={"a": "2", "b": "3"})  # the first is as the run began
    for _ in range(2):
        assert MlflowLog(more).log_files([], nothing) == []
    client = mlflow.MlflowClient(description.uri)
    experiment = client.get_experiment_by_name("mlflow-test").experiment_id
    (run,) = client.search_runs([experiment])
    assert run.data.params == {"a": "1", "b": "3"}
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["config.yaml"]


def crash(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_what_comes_after_a_rewind_is_a_run_below_the_first_with_points_of_its_own(description):
    log = MlflowLog(description)
    deliver(
        log,
        [
            Record(16, 1.0, values={"images": 16.0, "loss_d": 1.0}),
            Record(32, 2.0, values={"images": 32.0, "loss_d": 2.0}),
            Record(32, 3.0, 1, values={"images": 32.0, "loss_d": 3.0}, scores={"fid": 40.0}),
            Record(32, 3.0, 1, checkpoint={"address": "run/checkpoints/there"}),
        ],
    )
    log.finish("FINISHED", {"note": "well"})
    client, run_id = mlflow.MlflowClient(description.uri), log.open()
    experiment = client.get_experiment_by_name("mlflow-test").experiment_id
    (below,) = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run_id}'")
    assert below.info.run_name == "faces, attempt 2"
    curves = {
        of: [(m.step, m.value) for m in client.get_metric_history(of, "loss_d")]
        for of in (run_id, below.info.run_id)
    }
    assert curves == {run_id: [(16, 1.0), (32, 2.0)], below.info.run_id: [(32, 3.0)]}
    assert [(m.step, m.value) for m in client.get_metric_history(below.info.run_id, "fid")] == [
        (32, 40.0)
    ]
    assert content(client, below.info.run_id, "checkpoints") == {
        "000000000032.json": {"address": "run/checkpoints/there"}
    }
    assert client.get_run(run_id).data.tags["note"] == "well"
    assert {client.get_run(of).info.status for of in curves} == {"FINISHED"}


@pytest.mark.slow
def test_the_same_records_twice_leave_the_same_run_and_it_is_found_by_its_key(description):
    records = [
        Record(16, 1.0, values={"loss_d": 1.0}),
        Record(16, 1.0, event=Event(EventAction.BEST, "fid 40", {"checkpoint": "there"})),
    ]
    ids = set()
    for _ in range(2):
        log = MlflowLog(description)
        deliver(log, records)
        ids.add(log.open())
    (run_id,) = ids
    client = mlflow.MlflowClient(description.uri)
    assert [(m.step, m.value) for m in client.get_metric_history(run_id, "loss_d")] == [(16, 1.0)]
    assert list(content(client, run_id, "timeline")) == ["000000000016-0-best.json"]


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers every request with the status that its path begins with."""

    def do_GET(self) -> None:
        """Answer."""
        self.send_response(int(self.path.split("/")[1]))
        self.end_headers()
        self.wfile.write(b"<html>no MLflow</html>")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def answers() -> Iterator[str]:
    """The address of a server that is no MLflow."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/200", "correct the address: what answers there is no MLflow server"),
        ("/404", r"give the http\(s\):// address"),
        ("/401", "set MLFLOW_TRACKING_USERNAME"),
        ("/403", "set MLFLOW_TRACKING_USERNAME"),
    ],
)
def test_a_server_that_takes_no_runs_is_told(answers, path, words):
    with pytest.raises(UsageError, match=rf"tracking\.uri: {answers}{path} takes no runs .*; {words}"):
        check_store(answers + path, "e")


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("file:///tmp/nowhere", "maintenance mode"),
        ("runs/mlruns", "maintenance mode"),
        ("foo://bar", "unsupported URI"),
        ("postgresql://127.0.0.1:1/x", "needs the Python package psycopg"),
    ],
)
def test_an_address_of_no_store_is_told(uri, words):
    with pytest.raises(UsageError, match=rf"tracking\.uri: {uri} .*{words}"):
        check_store(uri, "e")


def test_a_server_that_is_away_is_waited_for(answers, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    check_store("http://127.0.0.1:1", "e")
    check_store(f"{answers}/503", "e")


@pytest.mark.slow
def test_a_deleted_experiment_is_told_with_its_number(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = mlflow.MlflowClient(uri)
    number = client.create_experiment("gone", (tmp_path / "artifacts").as_uri())
    check_store(uri, "gone")
    client.delete_experiment(number)
    with pytest.raises(UsageError, match=rf"tracking\.experiment: gone was deleted .*-id {number}, or"):
        check_store(uri, "gone")
    client.restore_experiment(number)
    check_store(uri, "gone")


@pytest.mark.slow
def test_what_mlflow_refuses_is_named_and_holds_nothing_up(description):
    log = MlflowLog(description)
    odd = Record(32, 2.0, values={"loss_d": 2.0, "loss*d": 2.0, "margin": 0.5})
    records = [Record(16, 1.0, values={"loss_d": 1.0}), odd, Record(48, 3.0, values={"loss_d": 3.0})]
    (refusal,) = log.log_points(records)
    assert (refusal.record, refusal.what) == (odd, "loss*d")
    assert "loss*d" in refusal.reason
    client, run_id = mlflow.MlflowClient(description.uri), log.open()
    assert [m.value for m in client.get_metric_history(run_id, "loss_d")] == [1.0, 2.0, 3.0]
    assert [m.value for m in client.get_metric_history(run_id, "margin")] == [0.5]


@pytest.mark.slow
def test_what_a_deleted_run_refuses_waits_until_it_is_restored(description):
    log, client = MlflowLog(description), mlflow.MlflowClient(description.uri)
    records = [Record(16, 1.0, values={"loss_d": 1.0})]
    client.delete_run(log.open())
    with pytest.raises(mlflow.MlflowException, match="active"):
        log.log_points(records)
    client.restore_run(log.open())
    assert log.log_points(records) == []


@pytest.mark.slow
def test_curves_need_no_place_for_files_not_even_at_the_start(description, monkeypatch):
    log = MlflowLog(replace(description, parameters={"a": "1"}, texts={"config.yaml": "a: 1"}))
    records = [Record(16, 1.0, values={"loss_d": 1.0}, checkpoint={"address": "there"})]
    client = mlflow.MlflowClient(description.uri)
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "log_text", crash)
        assert log.log_points(records) == []
        with pytest.raises(KeyboardInterrupt):
            log.log_files(records, nothing)
        (point,) = client.get_metric_history(log.open(), "loss_d")
        assert point.step == 16
    assert log.log_files(records, nothing) == []
    found = {file.path for file in client.list_artifacts(log.open())}
    assert found == {"config.yaml", "checkpoints"}
