"""A group that is asked to leave stops at a commit, or saves at the next look; its run is the same."""

import pytest
import torch

from service.config import Config
from service.engine.plain import PARTS, PlainState
from service.recording.recorder import Leaving
from service.run import checkpoint, commits
from service.run.checkpoint import Keep
from service.run.commits import Name
from service.storage import open_storage
from service.storage.lock import RunLock
from service.training import worker
from service.training.job import Job
from tests.conftest import assert_equal, tiny_config
from tests.live import SilentRecorder

END = 240


class Asking(SilentRecorder):
    """Asks to leave after so many questions."""

    def __init__(self, after: int, leaving: Leaving):
        super().__init__()
        self._left, self._leaving = after, leaving

    def leaving(self) -> Leaving:
        """The wish, once the questions are used up."""
        self._left -= 1
        return Leaving.NO if self._left >= 0 else self._leaving


def train(config: Config, after: int = 10**9, leaving: Leaving = Leaving.AT_LOOK) -> int:
    """As the supervisor has a worker do it; returns the clock that it came to."""
    lock = RunLock(open_storage(config.run.dir))
    try:
        asking = Asking(after, leaving)
        return worker.train(Job(config.model_dump(), lock.acquire(), END, asking, rehearsed=1))
    finally:
        lock.release()


def final(config: Config) -> tuple[dict, commits.Manifest]:
    storage = open_storage(config.run.dir)
    return checkpoint.read(storage, commits.find(storage)[0][-1])


@pytest.mark.slow
def test_on_a_notice_it_saves_at_once_and_nothing_is_trained_twice_or_lost(
    digits, tmp_path, monkeypatch
):
    torch.set_num_threads(1)
    configs = [
        tiny_config(
            digits,
            tmp_path / name,
            checkpoint={"every_images": 160},
            tracking={"every_images": 16, "pictures_every_images": 10**6},
        )
        for name in ("undisturbed", "left")
    ]
    assert train(configs[0]) == END
    storage = open_storage(configs[1].run.dir)
    clocks = []
    for after in (2, 3):
        clocks.append(train(configs[1], after))
        assert commits.newest_clock(storage) == clocks[-1]
        assert not final(configs[1])[1].due
    assert 0 < clocks[0] < clocks[1] < 160
    assert train(configs[1], 0, Leaving.AT_COMMIT) == 160  # to grow, it waits for one that is due
    assert final(configs[1])[1].due
    assert train(configs[1]) == END
    assert [name.clock for name in commits.find(storage)[0]] == [160, END]  # as if none had come
    (tensors, manifest), (expected, undisturbed) = final(configs[1]), final(configs[0])
    assert_equal(tensors, expected)
    assert manifest.state == undisturbed.state


@pytest.mark.slow
def test_saving_by_time_changes_nothing_of_the_run_and_no_rewind_goes_back_to_it(
    digits, tmp_path, monkeypatch
):
    torch.set_num_threads(1)
    saves: list[tuple[int, bool]] = []
    save = checkpoint.Checkpointer.save

    def noted(self, state, metrics=None, due=True):
        saves.append((state.clock, due))
        save(self, state, metrics, due)

    monkeypatch.setattr(checkpoint.Checkpointer, "save", noted)
    runs = []
    for every_s in (None, 1e-9):
        config = tiny_config(
            digits,
            tmp_path / str(every_s),
            checkpoint={"every_images": 160, "every_s": every_s},
            tracking={"every_images": 80, "pictures_every_images": 10**6},
        )
        assert train(config, leaving=Leaving.NO) == END
        runs.append(final(config))
    assert saves == [(160, True), (END, True), (80, False), (160, True), (END, True)]
    (expected, undisturbed), (tensors, manifest) = runs
    assert_equal(tensors, expected)
    assert manifest.state == undisturbed.state


def test_checkpoints_that_were_not_due_push_out_none_that_was():
    names = [Name(1, i, 16 * i) for i in range(1, 7)]
    undue = {names[2], names[4], names[5]}
    assert Keep(2).choose(names, names, [], undue) == {names[1], names[3], names[5]}
    assert Keep(2).choose(names, names, []) == {names[4], names[5]}


def test_a_rewind_goes_back_to_none_that_was_not_due():
    state = PlainState(seed=0, clock=16)
    files = {f"{part}.pt": commits.FileEntry(1, "0a" * 32) for part in PARTS}
    manifest = commits.Manifest(token=1, sequence=1, files=files, state=state, config={}, metrics={})
    assert manifest.is_healthy
    assert not manifest.model_copy(update={"due": False}).is_healthy
