"""A worker's loop where a part of it fails on one worker alone, or where memory does not suffice."""

from pathlib import Path

import pytest
import torch

from service.config import Config
from service.engine import distributed
from service.engine.panel import draw_panel
from service.engine.step import Step
from service.errors import MemoryLackError
from service.run import commits
from service.storage import open_storage
from service.storage.lock import RunLock
from service.training import rehearsal, worker
from service.training.job import Job
from service.training.monitor import PanelReader
from tests.conftest import tiny_config, tiny_values
from tests.live import SilentRecorder
from tests.workers import work_together

pytestmark = pytest.mark.slow

WORKERS = 2
END = 64


def work(values: dict, token: int) -> None:
    """A worker; the second one cannot read its held-out images."""
    if not distributed.join().is_first:
        PanelReader.take = lambda self: None
    worker.train(Job(values, token, END, SilentRecorder()))


# Its discriminator has batch norm, whose sums are over all workers.
DCGAN = {"family": "dcgan", "resolution": 16, "channels": 1, "classes": 10, "width": 4, "latents": 8}


def test_where_one_worker_lacks_real_images_all_measure_without_and_go_on(digits, tmp_path: Path):
    values = tiny_values(digits, tmp_path / "run", tracking={"every_images": 16}, scale={"workers": 2})
    phases = [{"resolution": 16, "hold_images": END, "batch": 16}]
    config = Config(**(values | {"model": DCGAN, "phases": phases}))
    storage = open_storage(config.run.dir)
    lock = RunLock(storage)
    work_together(work, WORKERS, tmp_path / "store", config.model_dump(), lock.acquire())
    lock.release()
    assert commits.newest_clock(storage) == END


LACKING = {
    "a cycle": ((Step, "cycle"), torch.OutOfMemoryError("CUDA out of memory. Tried to get 2.00 GiB.")),
    "the panel": ((rehearsal, draw_panel.__name__), RuntimeError("CUDA error: out of memory")),
    "a library": ((Step, "cycle"), RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")),
}


@pytest.mark.parametrize(("where", "error"), LACKING.values(), ids=LACKING)
def test_too_little_memory_is_told_with_its_phase_and_the_remedy(
    digits, tmp_path, monkeypatch, where, error
):
    def lack(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(*where, lack)
    config = tiny_config(digits, tmp_path / "run")
    job = Job(config.model_dump(), 1, END, SilentRecorder())
    with pytest.raises(
        MemoryLackError, match=r"suffice \((CUDA|cuDNN) \w.*\).*phase 'hold 8 px'.*scale.device_batch"
    ):
        worker.train(job)
