"""A collapse in the training loop itself: seen, rewound, amended, and reproducible."""

import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from service.collapse import detector
from service.collapse.response import CollapseError
from service.collapse.state import Kind, Level, Verdict
from service.config import Config
from service.engine.state import new_state
from service.recording.record import Record
from service.recording.recorder import RecorderClient
from service.run import checkpoint, commits
from service.storage import open_storage
from service.storage.lock import RunLock
from service.training import worker
from service.training.job import Job
from tests.conftest import assert_equal, tiny_config
from tests.runs import sealed

pytestmark = pytest.mark.slow

END = 480
DAMAGED_AT = 240
AMENDMENT = {"training.lr_generator": "x0.5", "training.d_steps": 2}


class Recorder:
    """Takes records as the actor does, in this process."""

    def __init__(self):
        self.records: list[Record] = []
        self.write = self.draw = self

    def remote(self, *arguments) -> None:
        self.records += [a for a in arguments if isinstance(a, Record)]

    def looks(self) -> list[Record]:
        return [r for r in self.records if r.kind == "values" and r.values]

    def events(self, action: str) -> list[Record]:
        return [r for r in self.records if r.event and r.event.action == action]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def configure(digits: Path, run: Path, **collapse) -> Config:
    return tiny_config(
        digits,
        run,
        checkpoint={"every_images": 80, "keep": 2},
        tracking={"every_images": 16, "pictures_every_images": 10**6},
        collapse={"amendments": [AMENDMENT], **collapse},
    )


def train(config: Config, end: int) -> Recorder:
    """As the supervisor has a worker do it after a rehearsal, alone and in this process."""
    lock, recorder = RunLock(open_storage(config.run.dir)), Recorder()
    try:
        client = RecorderClient(recorder)
        worker.train(Job(config.model_dump(), lock.acquire(), end, client, rehearsed=1))
    finally:
        lock.release()
    return recorder


def damage(run: Path, **verdict: str) -> None:
    """A weight of the newest checkpoint becomes NaN, and its digest is right; its verdict is this."""
    storage = open_storage(str(run))
    name = commits.find(storage)[0][-1]
    weights = torch.load(run / name.folder / "generator.pt", weights_only=True)
    weights["dense.weight"].view(-1)[0] = float("nan")
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    (run / name.folder / "generator.pt").write_bytes(buffer.getvalue())
    file = run / name.folder / commits.MANIFEST
    manifest = json.loads(file.read_text())
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    manifest["files"]["generator.pt"] = {"bytes": buffer.tell(), "sha256": digest}
    manifest["state"]["collapse"]["verdict"] |= verdict
    file.write_bytes(sealed(manifest))


@pytest.fixture(scope="module")
def healthy(digits, tmp_path_factory) -> Path:
    """A run of DAMAGED_AT images, for tests to copy."""
    run = tmp_path_factory.mktemp("healthy") / "run"
    train(configure(digits, run), DAMAGED_AT)
    return run


def collapsed_run(healthy: Path, digits: Path, run: Path, **collapse) -> Config:
    """A run whose newest checkpoint, of DAMAGED_AT images, holds a NaN."""
    shutil.copytree(healthy, run)
    damage(run)
    return configure(digits, run, **collapse)


def final(config: Config) -> tuple[dict, commits.Manifest]:
    storage = open_storage(config.run.dir)
    return checkpoint.read(storage, commits.find(storage)[0][-1])


def test_variety_within_ten_classes_is_measured_where_a_batch_holds_sixteen_images(digits, tmp_path):
    recorder = train(configure(digits, tmp_path / "run"), 64)
    within = [r.values["within_pixels"] for r in recorder.looks()]
    assert len(within) == 4
    assert all(0.01 < value < 3 for value in within)


def test_a_collapse_is_rewound_to_the_last_healthy_checkpoint_with_the_amendment(
    healthy, digits, tmp_path
):
    config = collapsed_run(healthy, digits, tmp_path / "run")
    recorder = train(config, END)
    (record,) = recorder.events("rewind")  # past the damaged one, which was healthy when it was saved
    assert record.event.details["checkpoint"].startswith("checkpoints/000000000160")
    assert "NaN" in record.event.reason
    tensors, manifest = final(config)
    state = manifest.state
    assert (state.clock, state.attempt) == (END, 1)
    values = {"training.lr_generator": 2.5e-4, "training.d_steps": 2}
    assert state.amendments == ((160, values),)
    assert all(t.isfinite().all() for t in tensors["generator"].values())
    last = recorder.looks()[-1]
    assert (last.attempt, last.values["collapse_level"]) == (1, 0.0)


def test_a_collapse_that_comes_back_at_once_is_rewound_further(healthy, digits, tmp_path):
    """A weight beyond fp32, which no amendment here undoes, breaks every attempt in its first cycle."""
    amendments = [{"training.drift": 1.0e39}]
    config = collapsed_run(healthy, digits, tmp_path / "run", max_rewinds=2, amendments=amendments)
    with pytest.raises(CollapseError, match="after 2 rewinds"):
        train(config, END * 100)


def test_a_rewound_run_that_is_stopped_goes_on_bit_for_bit(healthy, digits, tmp_path):
    whole = collapsed_run(healthy, digits, tmp_path / "whole")
    train(whole, END)
    parts = collapsed_run(healthy, digits, tmp_path / "parts")
    for end in (DAMAGED_AT + 40, 352, END):
        train(parts, end)
    mine, theirs = final(parts), final(whole)
    assert_equal(mine[0], theirs[0])
    assert mine[1].state == theirs[1].state


def test_after_its_rewinds_a_run_ends_and_names_the_best_checkpoint(healthy, digits, tmp_path):
    config = collapsed_run(healthy, digits, tmp_path / "run", max_rewinds=0)
    with pytest.raises(CollapseError, match=r"\(numeric\).*NaN.*best checkpoint is .*checkpoints/0+160"):
        train(config, END)


def test_stop_ends_at_once(healthy, digits, tmp_path):
    config = collapsed_run(healthy, digits, tmp_path / "run", action="stop")
    with pytest.raises(CollapseError, match="best checkpoint"):
        train(config, END)


def test_alert_tells_once_and_goes_on(healthy, digits, tmp_path):
    config = collapsed_run(healthy, digits, tmp_path / "run", action="alert")
    recorder = train(config, 320)
    (record,) = recorder.events("alert")
    assert record.event.details["kind"] == "numeric"
    assert final(config)[1].state.clock == 320


def test_protect_keeps_the_last_healthy_checkpoint_for_good(healthy, digits, tmp_path):
    config = collapsed_run(healthy, digits, tmp_path / "run", action="protect")
    (record,) = train(config, 560).events("protect")
    storage = open_storage(config.run.dir)
    clocks = [name.clock for name in commits.find(storage)[0]]
    assert clocks == [160, 240, 480, 560]
    assert record.event.details["checkpoint"].startswith("checkpoints/000000000160")


def test_without_a_healthy_checkpoint_a_run_begins_anew(digits, tmp_path):
    config = configure(digits, tmp_path / "run")
    train(config, 80)
    damage(tmp_path / "run", level="collapsed", kind="numeric")
    (record,) = train(config, 240).events("rewind")
    assert record.event.details["checkpoint"] == "the start"
    state = final(config)[1].state
    assert (state.attempt, state.clock) == (1, 256)  # in cycles of 32, from 0
    assert state.amendments[0][0] == 0


def augmented(digits: Path, run: Path, **collapse: Any) -> Config:
    """A run that changes half of the images that D sees."""
    return tiny_config(
        digits,
        run,
        checkpoint={"every_images": 80},
        training={"augment": "diffaugment", "augment_p": 0.5},
        collapse=collapse,
    )


def overfits(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """So many times, at 112 images, the verdict is that D learns by heart."""
    verdicts = [Verdict(Level.COLLAPSED, Kind.D_OVERFIT, "by heart", 80)] * times
    judge = detector.judge
    monkeypatch.setattr(
        detector,
        "judge",
        lambda history: verdicts.pop() if history[-1].clock == 112 and verdicts else judge(history),
    )


def test_a_discriminator_that_learns_by_heart_sees_more_changed_images(digits, tmp_path, monkeypatch):
    """Instead of the amendment for all other kinds."""
    expected = {"training.augment_p": 0.75}
    overfits(monkeypatch, times=1)
    config = augmented(digits, tmp_path / "run", amendments=[AMENDMENT])
    (record,) = train(config, 160).events("rewind")
    assert record.event.details["amendment"] == expected
    assert [values for _, values in final(config)[1].state.amendments] == [expected]


def test_a_factor_that_leads_out_of_bounds_is_left_out_and_the_run_goes_on(
    digits, tmp_path, monkeypatch
):
    """Once it can be applied, as is checked at the start, but not twice."""
    overfits(monkeypatch, times=2)
    config = augmented(digits, tmp_path / "run", overfit_amendment={"training.augment_p": "x1.6"})
    events = train(config, 160).events("rewind")
    assert [each.event.details["amendment"] for each in events] == [{"training.augment_p": 0.8}, {}]
    assert final(config)[1].state.clock == 160


def test_an_amendment_changes_what_it_names_and_nothing_else(digits, tmp_path):
    """After a rewind the configuration in force still says what is done about a collapse."""
    config = configure(digits, tmp_path / "run", max_rewinds=7)
    amended = config.amended({"training.lr_generator": 1e-5})
    before, after = config.model_dump(), amended.model_dump()
    assert after["training"].pop("lr_generator") == 1e-5
    before["training"].pop("lr_generator")
    assert after == before


def test_looking_changes_nothing_of_the_training(digits, tmp_path):
    """Law 3's second half: signals at every cycle, or never, and the same weights."""
    often = configure(digits, tmp_path / "often")
    seldom = tiny_config(
        digits,
        tmp_path / "seldom",
        checkpoint={"every_images": 80},
        tracking={"every_images": 10**6, "pictures_every_images": 10**6},
    )
    for config in (often, seldom):
        train(config, 240)
    mine, theirs = final(often)[0], final(seldom)[0]
    for part in ("generator", "discriminator", "ema", "optimizer_g", "optimizer_d"):
        assert_equal(mine[part], theirs[part], part)


def test_vectors_of_the_spectra_resume(digits, tmp_path):
    config = configure(digits, tmp_path / "run")
    train(config, 160)
    state = new_state(config, torch.device("cpu"))
    before = {name: v.clone() for name, v in state.spectra.state_dict().items()}
    checkpoint.resume(open_storage(config.run.dir), state)
    after = state.spectra.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
