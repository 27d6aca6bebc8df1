"""A run whose data moves and grows between two starts."""

import shutil

import pytest
import torch

from service.data.index import read_index
from service.driver.preflight import open_run
from service.run import commits
from service.run.directory import read_run
from service.storage import open_storage
from service.training import worker
from service.training.job import Job
from tests.conftest import tiny_config
from tests.live import SilentRecorder


@pytest.mark.slow
def test_a_run_goes_on_when_its_data_moved_and_grew(digits, tmp_path, capsys):
    torch.set_num_threads(1)
    before, after = tmp_path / "before", tmp_path / "after"
    shutil.copytree(digits, before)

    def train_to(images: int, data, **settings: bool) -> None:
        """As the driver does it, with one worker in this process."""
        config = tiny_config(data, tmp_path / "run", run={"images": images}, data=settings)
        with open_run(config) as run:
            worker.train(Job(config.model_dump(), run.token, run.end, SilentRecorder(), rehearsed=1))

    train_to(160, before)
    before.rename(after)
    shutil.copy(after / "shard-000000.tar", after / "more.tar")
    train_to(320, after, grown=True)
    assert "the data grew; the run sees all of it from clock 160 on" in capsys.readouterr().err
    run = read_run(open_storage(str(tmp_path / "run")))
    index = read_index(open_storage(str(after)))
    assert run.fingerprint == index.fingerprint()
    assert [(part.clock, len(index) - 500) for part in run.grown] == [(160, 1797)]
    assert commits.newest_clock(open_storage(str(tmp_path / "run"))) == 320
