"""The disk of a run's directory fills up and is freed: the run goes on, and nothing shows it."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.run import commits
from tests.chaos.conftest import CONFIG, IMAGES, LOOK_EVERY, SAVE_EVERY, ChaosRun, curve, tell

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk"),
]

SIZE = "24m"


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A small disk of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(place)], check=True)
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def run(data, disk, tmp_path) -> Iterator[ChaosRun]:
    """A run whose directory lies on the small disk."""
    few = {"checkpoint": {"keep": 1, "every_images": SAVE_EVERY}}
    with ChaosRun("disk", tmp_path, data, address=str(disk / "run"), **(CONFIG | few)) as run:
        yield run


def test_a_run_outlives_a_full_disk(cluster, run, disk, undisturbed):
    run.submit()
    run.wait_for(lambda: run.clock() >= 2 * SAVE_EVERY, "start to the second commit")
    filler = disk / "filler"
    with filler.open("wb") as file:
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        os.posix_fallocate(file.fileno(), 0, free)
    before = run.clock()
    run.wait_for(lambda: "No space left" in run.output(), "a full disk to its message")
    assert run.clock() == before
    filler.unlink()
    run.wait_for(lambda: run.clock() > before, "free space to new commits")
    assert run.end() == 0, run.output()
    tell(f"groups of workers: {len(run.groups())}")
    assert commits.newest_clock(run.storage) == IMAGES
    parent, _ = run.mlflow_runs()
    points = curve(parent, "loss_d")
    assert list(points) == list(range(LOOK_EVERY, IMAGES + 1, LOOK_EVERY))
    assert points == curve(undisturbed.mlflow_runs()[0], "loss_d")
