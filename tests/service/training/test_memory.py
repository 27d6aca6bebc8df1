"""How many images go through at a time: tried where memory runs out, agreed, kept, and taken again."""

from pathlib import Path

import pytest
import torch

from models.growth import GrowingDiscriminator
from service.config import Config
from service.engine import distributed
from service.errors import MemoryLackError
from service.run import commits
from service.storage import open_storage
from service.storage.lock import RunLock
from service.training import memory, worker
from service.training.job import Job
from service.training.memory import KEY, FittedDocument
from tests.conftest import tiny_config, tiny_values
from tests.live import SilentRecorder
from tests.workers import work_together

pytestmark = pytest.mark.slow

END = 48
seen: list[int] = []


def hold(most: int, drawn: int = 10**6) -> None:
    """From now on this process's device has memory to judge `most` images, or `drawn` of a generator."""
    judged = GrowingDiscriminator.forward

    def forward(self, images: torch.Tensor, *rest) -> torch.Tensor:
        seen.append(len(images))
        if len(images) > (drawn if images.requires_grad else most):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return judged(self, images, *rest)

    GrowingDiscriminator.forward = forward
    memory.can_run_out = lambda device: True


@pytest.fixture
def device(monkeypatch):
    """`hold` is undone at the end of the test."""
    monkeypatch.setattr(GrowingDiscriminator, "forward", GrowingDiscriminator.forward)
    monkeypatch.setattr(memory, "can_run_out", memory.can_run_out)
    seen.clear()


def config_of(digits: Path, run: Path, **sections) -> Config:
    """A run of batches of 16, in groups of 4; the discriminator sees real and fake images together."""
    values = tiny_values(digits, run, training={"norm_group": 4}, **sections)
    values["phases"] = [{"resolution": 32, "hold_images": END, "batch": 16}]
    return Config(**values)


def train(config: Config, rehearsed: int = 0, end: int = END) -> None:
    lock = RunLock(open_storage(config.run.dir))
    try:
        job = Job(config.model_dump(), lock.acquire(), end, SilentRecorder(), rehearsed=rehearsed)
        worker.train(job)
    finally:
        lock.release()


@pytest.mark.usefixtures("device")
def test_what_does_not_fit_is_halved_and_written_down_and_taken_again(digits, tmp_path):
    config = config_of(digits, tmp_path / "run")
    hold(16)  # 8 real and 8 fake ones
    train(config)
    storage = open_storage(config.run.dir)
    document = FittedDocument.from_bytes(storage.get(KEY), KEY)
    assert document.images == {"hold 32 px, batch 16": 8}
    assert document.device == "cpu"
    assert commits.newest_clock(storage) == END
    seen.clear()
    train(config, rehearsed=1, end=END + 16)  # a group that does not rehearse again
    assert seen
    assert max(seen) <= 16
    assert commits.newest_clock(storage) == END + 16


@pytest.mark.usefixtures("device")
def test_it_may_be_the_generators_step_that_does_not_fit(digits, tmp_path):
    config = config_of(digits, tmp_path / "run")
    hold(10**6, drawn=8)
    train(config)
    storage = open_storage(config.run.dir)
    images = FittedDocument.from_bytes(storage.get(KEY), KEY).images
    assert images == {"hold 32 px, batch 16": 8}
    assert commits.newest_clock(storage) == END


@pytest.mark.usefixtures("device")
def test_below_one_groups_images_it_is_refused_with_the_remedy(digits, tmp_path):
    config = config_of(digits, tmp_path / "run")
    hold(7)
    with pytest.raises(MemoryLackError, match=r"one group's images.*training\.norm_group"):
        train(config)
    assert not open_storage(config.run.dir).sizes(KEY)


@pytest.mark.parametrize(
    "content", [b"{", b'{"version": 1, "device": "another", "images": {"hold 32 px, batch 16": 4}}']
)
@pytest.mark.usefixtures("device")
def test_what_was_written_by_others_or_is_damaged_does_not_count(digits, tmp_path, content):
    config = config_of(digits, tmp_path / "run")
    storage = open_storage(config.run.dir)
    storage.put(KEY, content)
    hold(10**6)
    train(config)
    assert FittedDocument.from_bytes(storage.get(KEY), KEY).images == {"hold 32 px, batch 16": 16}


@pytest.mark.usefixtures("device")
def test_a_number_is_taken_as_it_is(digits, tmp_path):
    config = config_of(digits, tmp_path / "run", scale={"device_batch": 4})
    hold(8)
    train(config)
    assert not open_storage(config.run.dir).sizes(KEY)


def work(values: dict, token: int) -> None:
    """A worker; the second one's device is smaller."""
    hold(16 if distributed.join().is_first else 8)
    worker.train(Job(values, token, END, SilentRecorder()))


def test_all_workers_take_what_fits_the_smallest_of_them(digits, tmp_path):
    values = tiny_values(digits, tmp_path / "run", training={"norm_group": 4}, scale={"workers": 2})
    values["phases"] = [{"resolution": 32, "hold_images": END, "batch": 16}]
    storage = open_storage(str(tmp_path / "run"))
    lock = RunLock(storage)
    work_together(work, 2, tmp_path / "store", Config(**values).model_dump(), lock.acquire())
    lock.release()
    document = FittedDocument.from_bytes(storage.get(KEY), KEY)
    assert document.images == {"hold 32 px, batch 16": 4}
    assert commits.newest_clock(storage) == END


def test_a_cpu_tries_nothing(digits, tmp_path):
    config = tiny_config(digits, tmp_path / "run", run={"images": 16})
    train(config, end=16)
    assert not open_storage(config.run.dir).sizes(KEY)
