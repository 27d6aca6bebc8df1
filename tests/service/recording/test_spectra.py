"""The page of all weights' spectra: what it keeps of a long run, over restarts and rewinds."""

import io
from pathlib import Path

import mlflow
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.recording import spectra
from service.recording.mlflow import Description
from service.recording.record import Record
from service.recording.recorder import Recorder
from service.recording.spectra import HISTORY_KEY, MOST_LOOKS, PAGE_KEY, Spectra, SpectraDocument
from service.storage import open_storage
from tests.live import wait_for

WEIGHTS = ("generator.blocks.8.conv.weight", "discriminator.heads.8.weight")


def record(clock: int, attempt: int = 0, largest: float = 2.0, rank: float = 3.0) -> Record:
    values = {"loss_d": 1.0, "spectrum_generator": largest}
    for weight in WEIGHTS:
        values |= {f"spectrum.{weight}.{i}": largest / (1 + i) for i in range(3)}
        values[f"stable_rank.{weight}"] = rank
    return Record(clock, 1_700_000_000.0 + clock, attempt, values)


def kept(folder: Path) -> SpectraDocument:
    return SpectraDocument.from_bytes((folder / HISTORY_KEY).read_bytes(), HISTORY_KEY)


def column(document: SpectraDocument, name: str) -> list[float | None]:
    return [row[document.names.index(name)] for row in document.values]


@settings(max_examples=20)
@given(st.integers(MOST_LOOKS // 2, 5 * MOST_LOOKS), st.data())
def test_a_long_run_keeps_few_looks_evenly_and_every_spike(looks, data):
    spike = data.draw(st.integers(1, looks))
    history = Spectra(open_storage("/nowhere"))
    for i in range(1, looks + 1):
        history.add(record(16 * i, largest=50.0 if i == spike else 2.0, rank=1.0 if i == spike else 3.0))
    left = history._looks
    clocks = [look.clock for look in left]
    assert len(left) == min(looks, MOST_LOOKS)
    assert (clocks[0], clocks[-1]) == (16, 16 * looks)
    gaps = np.diff(clocks)
    assert (gaps > 0).all()
    assert gaps.max() <= 4 * max(16, 16 * looks / MOST_LOOKS)
    for weight in WEIGHTS:
        assert max(look.values[f"spectrum.{weight}"] for look in left) == 50
        assert min(look.values[f"stable_rank.{weight}"] for look in left) == 1


def test_a_resumed_run_has_what_came_before_and_a_replayed_look_once(tmp_path):
    first = Spectra(open_storage(str(tmp_path)))
    for clock in (16, 32, 48):
        first.add(record(clock, largest=float(clock)))
    first.store()
    again = Spectra(open_storage(str(tmp_path)))
    for clock in (32, 48, 64):  # from the checkpoint at 16 on
        again.add(record(clock, largest=float(clock)))
    again.add(record(32, 1, 7.0))  # a rewind
    again.draw()
    document = kept(tmp_path)
    assert document.looks == ((16, 0), (32, 0), (48, 0), (64, 0), (32, 1))
    assert document.names == tuple(f"{m}.{w}" for w in WEIGHTS for m in ("spectrum", "stable_rank"))
    assert column(document, f"spectrum.{WEIGHTS[0]}") == [16, 32, 48, 64, 7]


@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"version": 1, "names": [], "looks": [[1, 0]], "values": []}']
)
def test_a_damaged_history_begins_anew(tmp_path, content, caplog):
    (tmp_path / HISTORY_KEY).write_bytes(content)
    history = Spectra(open_storage(str(tmp_path)))
    history.add(record(16))
    history.store()
    assert kept(tmp_path).looks == ((16, 0),)
    assert "event=spectra_begin_anew" in caplog.text


def test_values_that_are_not_finite_and_runs_without_spectra_are_no_curves(tmp_path):
    history = Spectra(open_storage(str(tmp_path)))
    history.add(Record(16, 1.0, values={"loss_d": 1.0}))
    assert history.draw() is None
    assert not (tmp_path / HISTORY_KEY).exists()
    history.add(record(32, largest=float("inf")))
    history.add(record(48, largest=0.0))
    assert history.draw() is not None
    assert column(kept(tmp_path), f"spectrum.{WEIGHTS[0]}") == [None, 0.0]


def start(folder: Path) -> Recorder:
    uri, artifacts = f"sqlite:///{folder}/mlflow.db", (folder / "artifacts").as_uri()
    description = Description(uri, "spectra-test", artifacts, "key", "faces")
    return Recorder(str(folder / "run"), description, "127.0.0.1", 0, retry_s=1, end=1000)


@pytest.mark.slow
def test_mlflow_has_one_page_over_a_restart_and_a_rewind_and_one_that_fails_costs_nothing_else(
    tmp_path, monkeypatch, caplog
):
    with monkeypatch.context() as patch:
        patch.setattr(spectra, "draw_page", fail)
        first = start(tmp_path)
        for clock in (16, 32):
            first.write(record(clock))
        first.write(Record(32, 1.0, checkpoint={"address": "there"}))
        wait_for((tmp_path / "run" / HISTORY_KEY).exists)  # a crash from now on loses none of it
        assert kept(tmp_path / "run").looks == ((16, 0), (32, 0))
        assert first.close("KILLED", {}, limit_s=120) == ""
    assert "no font" in caplog.text
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("spectra-test").experiment_id
    (run,) = client.search_runs([experiment])
    assert run.info.status == "KILLED"
    assert not client.list_artifacts(run.info.run_id, "pictures")

    again = start(tmp_path)
    for clock in (48, 64):
        again.write(record(clock))
    again.write(record(48, 1))
    assert again.close("FINISHED", {}, limit_s=120) == ""
    assert kept(tmp_path / "run").looks == ((16, 0), (32, 0), (48, 0), (64, 0), (48, 1))
    logged = client.download_artifacts(run.info.run_id, PAGE_KEY, str(tmp_path))
    drawn = Image.open(io.BytesIO((tmp_path / "run" / PAGE_KEY).read_bytes()))
    assert np.array_equal(np.asarray(Image.open(logged)), np.asarray(drawn))
    history = client.get_metric_history(run.info.run_id, f"stable_rank.{WEIGHTS[0]}")
    assert [point.step for point in history] == [16, 32, 48, 64]


def fail(looks: object) -> bytes:
    raise RuntimeError("no font")
