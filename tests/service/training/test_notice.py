"""A group that is asked to leave saves at the next look, and nothing else of the run changes."""

import pytest
import torch

from service.config import Config
from service.engine.state import PlainState
from service.recording.recorder import RecorderClient
from service.run import checkpoint
from service.run.checkpoint import Keep, Name
from service.storage import open_storage
from service.storage.lock import RunLock
from service.training import worker
from tests.conftest import assert_equal, tiny_config

END = 240


class Asking(RecorderClient):
    """Takes all records, and asks to leave after so many questions."""

    def __init__(self, after: int):
        self._left = after

    def __getattribute__(self, name: str):
        """Take every record."""
        if name in ("write", "draw", "settle"):
            return lambda *_: None
        return super().__getattribute__(name)

    def is_leaving(self) -> bool:
        """Whether the questions are used up."""
        self._left -= 1
        return self._left < 0


def train(config: Config, after: int = 10**9) -> int:
    """As the supervisor has a worker do it; returns the clock that it came to."""
    lock = RunLock(open_storage(config.run.dir))
    try:
        return worker.train(worker.Job(config.model_dump(), lock.acquire(), END, Asking(after)))
    finally:
        lock.release()


def final(config: Config) -> tuple[dict, checkpoint.Manifest]:
    storage = open_storage(config.run.dir)
    return checkpoint.read(storage, checkpoint.find(storage)[0][-1])


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
        assert checkpoint.newest_clock(storage) == clocks[-1]
        assert not final(configs[1])[1].due
    assert 0 < clocks[0] < clocks[1] < 160
    assert train(configs[1]) == END
    assert [name.clock for name in checkpoint.find(storage)[0]] == [160, END]  # as if none had come
    (tensors, manifest), (expected, undisturbed) = final(configs[1]), final(configs[0])
    assert_equal(tensors, expected)
    assert manifest.state == undisturbed.state


def test_checkpoints_that_were_not_due_push_out_none_that_was():
    names = [Name(1, i, 16 * i) for i in range(1, 7)]
    undue = {names[2], names[4], names[5]}
    assert Keep(2).choose(names, names, [], undue) == {names[1], names[3], names[5]}
    assert Keep(2).choose(names, names, []) == {names[4], names[5]}


def test_a_rewind_goes_back_to_none_that_was_not_due():
    state = PlainState(seed=0, clock=16)
    manifest = checkpoint.Manifest(token=1, sequence=1, files={}, state=state, config={}, metrics={})
    assert manifest.is_healthy
    assert not manifest.model_copy(update={"due": False}).is_healthy
