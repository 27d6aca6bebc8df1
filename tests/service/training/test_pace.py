"""Who computes slowest: told by a piece of work that no other worker takes part in."""

import json
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.engine import distributed
from service.recording.record import Record
from service.storage import open_storage
from service.storage.lock import RunLock
from service.training import worker
from service.training.job import Job
from service.training.pace import Pace, slowest
from tests.conftest import tiny_config
from tests.live import SilentRecorder
from tests.workers import work_together

WORKERS, SLOW = 2, 1


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=64))
def test_the_slowest_is_at_least_the_median_and_named_by_its_rank(seconds):
    ratio, rank = slowest(torch.tensor(seconds, dtype=torch.float64))
    assert ratio >= 1
    assert seconds[rank] == max(seconds)


def test_timing_draws_no_random_number():
    before = torch.get_rng_state()
    assert Pace(torch.device("cpu")).seconds() > 0
    assert torch.equal(torch.get_rng_state(), before)


class _Curves(SilentRecorder):
    """Appends the values of the curves to a file."""

    def __init__(self, file: str):
        super().__init__()
        self._file = file

    def write(self, record: Record) -> None:
        with open(self._file, "a") as file:
            file.write(json.dumps(record.values if record.kind == "values" else {}) + "\n")


def work(values: dict, token: int, file: str) -> None:
    """A worker; one has a slow device."""
    if distributed.join().index == SLOW:
        quick = Pace._time

        def slow(self: Pace) -> float:
            time.sleep(0.05)
            return quick(self) + 0.05

        Pace._time = slow
    worker.train(Job(values, token, 64, _Curves(file)))


@pytest.mark.slow
def test_a_slow_device_is_named_though_all_cycles_take_as_long(digits, tmp_path: Path):
    config = tiny_config(
        digits, tmp_path / "run", tracking={"every_images": 16}, scale={"workers": WORKERS}
    )
    lock, curves = RunLock(open_storage(config.run.dir)), tmp_path / "curves"
    given = config.model_dump(), lock.acquire(), str(curves)
    work_together(work, WORKERS, tmp_path / "store", *given)
    lock.release()
    looks = [values for values in map(json.loads, curves.read_text().splitlines()) if values]
    assert [values["slowest_worker_rank"] for values in looks] == [SLOW] * len(looks)
    assert min(values["slowest_worker"] for values in looks) > 2
    assert {values["data_wait_rank"] for values in looks} <= set(range(WORKERS))
