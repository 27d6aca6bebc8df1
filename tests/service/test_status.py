"""Where a run stands, from its directory alone."""

import json
import os
import time
from pathlib import Path

import psutil
import pytest

from service import status
from service.collapse.state import Kind, Level, Verdict
from service.config import Config
from service.errors import TrainingError, UsageError
from service.recording.status import STATUS_KEY, StatusDocument
from service.run import commits, ranking
from service.run.directory import read_run
from service.run.failure import write_failure
from service.run.summary import State, summarise
from service.storage import Storage, open_storage
from service.storage.lock import LOCK_KEY, Holder, RunLock
from tests.conftest import PLACES, run_command
from tests.runs import make_run

CLOCK, END = 176, 320


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    return open_storage(make_run(tmp_path / "run", "biggan", CLOCK))


def tell(storage: Storage, **changes: object) -> None:
    """Write a status as the recorder does."""
    told = StatusDocument(
        time=time.time(),
        started=time.time() - 100,
        status="RUNNING",
        clock=200,
        end=END,
        attempt=0,
        stage="fade to 16 px",
        verdict=Verdict(),
        values={"images_per_s": 50.0},
        left_s=2.4,
        checkpoint_time=time.time() - 30,
        trouble="",
        still="",
        error="",
    )
    storage.put(STATUS_KEY, told.model_copy(update=changes).to_bytes())


def hold(storage: Storage, **changes: object) -> None:
    """Let a process hold the run: this one, unless they say otherwise."""
    started = psutil.Process(os.getpid()).create_time()
    holder = Holder(token=7, host=os.uname().nodename, pid=os.getpid(), started=started,
                    renewed=time.time(), lease_s=60.0)  # fmt: skip
    storage.put(LOCK_KEY, holder.model_copy(update=changes).to_bytes())


def lines(capsys: pytest.CaptureFixture[str], storage: Storage) -> dict[str, str]:
    status.main([storage.address])
    return {line[:12].strip(): line[12:] for line in capsys.readouterr().out.splitlines()}


def test_a_run_that_trains(run, capsys):
    hold(run)
    tell(run)
    seen = lines(capsys, run)
    assert seen["state"] == "training, fade to 16 px"
    assert seen["clock"] == "200 of 320 images, 62%"
    assert seen["rate"] == "50 images/s, left 0:02"
    assert seen["verdict"] == "healthy"
    assert seen["checkpoint"].startswith("176 images, 0:30 ago: ")
    assert f"held by process {os.getpid()} on" in seen["lock"]


@pytest.mark.parametrize(
    ("holder", "told", "state"),
    [
        ({}, None, State.STARTING),
        ({}, {"status": "KILLED"}, State.STARTING),  # of the driver before
        ({}, {}, State.TRAINING),
        ({}, {"time": time.time() - 600}, State.SILENT),
        ({"host": "elsewhere"}, {}, State.TRAINING),
        ({"host": "elsewhere", "renewed": time.time() - 600}, {}, State.DIED),
        ({"started": 1.0}, {}, State.DIED),
        ({"pid": 0}, {}, State.DIED),
        ({"pid": 0}, {"status": "KILLED"}, State.INTERRUPTED),
        ({"pid": 0}, {"status": "FAILED", "error": "no bucket"}, State.FAILED),
        ({"pid": 0}, {"status": "FINISHED", "end": CLOCK}, State.FINISHED),
    ],
)
def test_the_state_is_what_lock_and_recorder_say(run, holder, told, state):
    hold(run, **holder)
    if told is not None:
        tell(run, **told)
    assert summarise(run).state == state


def test_after_its_end_the_clock_is_that_of_the_newest_checkpoint(run):
    hold(run, pid=0)
    tell(run, status="FAILED", error="the bucket is gone")
    summary = summarise(run)
    assert (summary.clock, summary.images_per_s, summary.left_s) == (CLOCK, None, None)
    assert summary.error == "the bucket is gone"


def test_a_failure_that_lasts_is_told_in_its_words(run, capsys):
    config = Config(**read_run(run).config)
    write_failure(run, config, TrainingError("collapsed at 160 images\nfor good"))
    seen = lines(capsys, run)
    assert seen["state"] == "failed"
    assert seen["error"] == "collapsed at 160 images\\nfor good"


def test_verdict_scores_and_trouble_are_told(run, capsys):
    hold(run)
    verdict = Verdict(Level.WARNING, Kind.MODE_COLLAPSE, "the images become alike", 160)
    tell(run, verdict=verdict, trouble="ConnectionError: refused", still="worker 1: training", attempt=2)
    (name,) = commits.find(run)[0]
    ranking.write(run, name, ranking.Score(CLOCK, 16, "fid", 12.5, {"fid": 12.5, "kid": 0.1}, 64))
    seen = lines(capsys, run)
    assert seen["verdict"] == "warning: mode_collapse, the images become alike"
    assert seen["score"] == seen["best"] == "fid 12.5 at 176 images"
    assert seen["trouble"] == "ConnectionError: refused"
    assert seen["still"] == "worker 1: training"
    assert seen["rewinds"] == "2"


@pytest.mark.parametrize("damage", [b"", b"{", b'{"version": 1}', b"\xff"])
def test_a_damaged_status_hides_nothing_else(run, damage):
    run.put(STATUS_KEY, damage)
    summary = summarise(run)
    assert (summary.clock, summary.end, summary.age_s) == (CLOCK, END, None)


@pytest.mark.parametrize("place", PLACES)
def test_a_program_reads_it_as_json(place, request, tmp_path, capsys):
    where = str(tmp_path) if place == "folder" else request.getfixturevalue("s3")
    address = make_run(f"{where}/status-run", "dcgan")
    status.main([address, "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["address"] == open_storage(address).address
    assert (told["clock"], told["state"]) == (CLOCK, "died")
    assert told["checkpoint"]["address"].startswith(address)


def test_what_is_no_run_is_said(tmp_path):
    with pytest.raises(UsageError, match=r"no run is there; give a run\.dir"):
        status.main([str(tmp_path)])
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(UsageError, match="holds a sweep; give one of its trials/"):
        status.main([str(tmp_path)])


def test_a_lock_that_was_just_released_is_free(run, capsys):
    lock = RunLock(run)
    token = lock.acquire()
    lock.release()
    assert lines(capsys, run)["lock"] == f"free; token {token}"


@pytest.mark.slow
def test_it_needs_neither_ray_nor_torch(run):
    code, output = run_command("service.status", run.address)
    assert code == 0
    assert "state       died" in output
