"""What somebody reads is not swept, and a reader that was too late reads another."""

from collections.abc import Iterator

import pytest
import torch

from service.engine.state import new_state
from service.errors import RefusedError
from service.run import checkpoint, commits
from service.run.best import load
from service.run.checkpoint import Checkpointer, Keep
from service.run.directory import RUN_KEY, RunDocument
from service.run.pins import PIN_LIMIT_S, Pins, pinned
from service.storage import Storage, open_storage
from service.storage.lock import RunLock
from tests.conftest import tiny_config


class Run:
    """A run that keeps its newest checkpoint alone; nothing is trained."""

    def __init__(self, folder: str):
        config = tiny_config("unused", folder)
        self.storage = open_storage(folder)
        document = RunDocument(key="5f1d" * 8, fingerprint="f" * 64, config=config.model_dump())
        self.storage.put(RUN_KEY, document.to_bytes())
        self._state = new_state(config, torch.device("cpu"))
        self.lock = RunLock(self.storage)
        token = self.lock.acquire()
        self._saver = Checkpointer(self.storage, token, Keep(1), config.model_dump())

    def save(self, clock: int) -> commits.Name:
        self._state.clock = clock
        self._saver.save(self._state)
        self._saver.wait()
        return self.committed[-1]

    @property
    def committed(self) -> list[commits.Name]:
        return commits.find(self.storage)[0]


@pytest.fixture
def run(tmp_path) -> Iterator[Run]:
    run = Run(str(tmp_path / "run"))
    yield run
    run.lock.release()


def test_a_pinned_checkpoint_stays_until_nobody_reads_it(run):
    first = run.save(96)
    with pinned(run.storage, first), pinned(run.storage, first):
        run.save(112)
        assert first in run.committed
    run.save(128)
    assert [name.clock for name in run.committed] == [128]
    assert run.storage.sizes("pins/") == {}


def test_the_pin_of_a_reader_that_died_counts_for_a_while(run):
    now = 1000.0
    pins = Pins(run.storage, clock=lambda: now)
    name = commits.Name(0, 1, 96)
    abandoned = pinned(run.storage, name)
    abandoned.__enter__()
    assert pins.folders() == {name.folder}
    now += PIN_LIMIT_S
    assert pins.folders() == {name.folder}
    now += 1
    assert pins.folders() == set()
    assert run.storage.sizes("pins/") == {}


def test_a_reader_that_a_sweep_overtook_reads_the_next_one(run, monkeypatch):
    first, read = run.save(96), checkpoint.read

    def overtaken(storage: Storage, name: commits.Name, *more):
        if name == first:
            run.save(112)  # keeps the first, which is pinned
            storage.delete([*commits.find(storage)[1][first]])  # a sweep that had begun before the pin
        return read(storage, name, *more)

    monkeypatch.setattr(checkpoint, "read", overtaken)
    assert load(run.storage.address).place.name.clock == 112


def test_where_nothing_may_be_written_it_is_read_all_the_same(run, monkeypatch):
    run.save(96)

    def refuse(*_: object) -> None:
        raise RefusedError("read only")

    monkeypatch.setattr(type(run.storage), "put", refuse)
    assert load(run.storage.address).place.name.clock == 96
