"""A run whose data moves and grows between two starts of the command."""

import shutil
from pathlib import Path

import yaml

from service.data.index import read_index
from service.run import checkpoint
from service.run.directory import read_run
from service.storage import open_storage
from tests.conftest import run_command, tiny_values


def test_a_run_goes_on_when_its_data_moved_and_grew(digits, stack, tmp_path):
    shutil.copytree(digits, tmp_path / "before")

    def train_to(images: int, data: Path, **settings: bool) -> str:
        values = tiny_values(data, tmp_path / "run", run={"images": images}, data=settings)
        (tmp_path / "moving.yaml").write_text(yaml.safe_dump(values))
        command = ("service.train", "--config", str(tmp_path / "moving.yaml"))
        code, output = run_command(*command, **stack.environment)
        assert code == 0, output
        return output

    train_to(320, tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    shutil.copy(tmp_path / "after" / "shard-000000.tar", tmp_path / "after" / "more.tar")
    output = train_to(640, tmp_path / "after", grown=True)
    assert "the data grew; the run sees all of it from clock 320 on" in output
    run = read_run(open_storage(str(tmp_path / "run")))
    index = read_index(open_storage(str(tmp_path / "after")))
    assert run.fingerprint == index.fingerprint()
    assert [(part.clock, len(index) - 500) for part in run.grown] == [(320, 1797)]
    assert checkpoint.newest_clock(open_storage(str(tmp_path / "run"))) == 640
