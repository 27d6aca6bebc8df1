"""Batches through the public door: whole, in order, with bad samples replaced and counted."""

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest

from service.config import Phase
from service.data import feeder
from service.data.dataset import Dataset, Request, read
from service.data.feeder import Feeders
from service.data.index import Index, read_index
from service.data.indexing import check_shards
from service.data.loader import BATCHES_AHEAD, Loader, check_prefetch
from service.data.order import Order
from service.data.starter import starter
from service.engine.curriculum import Curriculum
from service.errors import DataError
from service.storage import open_storage
from tests.conftest import ROOT

LANES, WINDOW = 8, 16
LARGEST = 64 * 32 * 32


def dataset_of(folder: Path | str, max_bad_samples: int = 10, **settings) -> Dataset:
    index = read_index(open_storage(str(folder)))
    order = Order(index, index.rows(False), 0, LANES, WINDOW)
    return Dataset(str(folder), index, order, 1, max_bad_samples=max_bad_samples, **settings)


def ask(*chunks: range) -> list[Request]:
    return [Request(np.array(chunk), 8) for chunk in chunks]


def load(dataset: Dataset, requests: list[Request], decoders: int = 1) -> tuple[list, list, dict]:
    """Copies of the images, the rows, and what was counted."""
    with Feeders(dataset, decoders, BATCHES_AHEAD + 1, LARGEST) as feeders:
        with Loader(feeders, requests) as loader:
            batches = [(batch.images.copy(), batch.rows) for batch in loader]
        return [images for images, _ in batches], [rows for _, rows in batches], feeders.counts()


def rows_of(index: Index, numbers) -> list[int]:
    """The index rows of these sample numbers."""
    order = Order(index, index.rows(False), 0, LANES, WINDOW)
    places = order.places(np.array(numbers))
    return [int(order.window_rows(place.window)[place.inside]) for place in places]


def damage(folder: Path, tmp_path: Path, numbers) -> tuple[Path, list[int]]:
    """A copy of the data in which the images of these sample numbers are no images."""
    copied = tmp_path / "damaged"
    shutil.copytree(folder, copied)
    index = read_index(open_storage(str(copied)))
    rows = rows_of(index, numbers)
    for row in rows:
        with open(copied / index.names[index.shard[row]], "r+b") as file:
            file.seek(int(index.offset[row]))
            file.write(b"\0" * int(index.size[row]))
    return copied, rows


@pytest.mark.slow
@pytest.mark.parametrize("decoders", [1, 3])
def test_samples_come_in_the_order_that_was_asked_for(digits, decoders):
    dataset = dataset_of(digits)
    numbers = [range(start, start + 24) for start in (0, 24, 48, 72, 96, 120, 100_000, 7)]
    images, rows, counts = load(dataset, ask(*numbers), decoders)
    assert counts["bad_samples"] == 0
    assert len(images) == len(numbers)
    for chunk, shown, batch in zip(numbers, rows, images, strict=True):
        assert shown.tolist() == rows_of(dataset.index, chunk)
        here = read(dataset, Request(np.array(chunk), 8))
        assert np.array_equal(batch, here.images)
        assert here.labels.tolist() == dataset.index.label[shown].tolist()


@pytest.mark.parametrize("decoders", [1, 2])
def test_a_batch_carries_the_clock_that_it_was_asked_for_at(digits, decoders):
    dataset, clocks = dataset_of(digits), [48, 0, 16, 16, 1 << 40, 7, 8]
    requests = [Request(np.arange(8), 8, clock=clock) for clock in clocks]
    feeders = Feeders(dataset, decoders, BATCHES_AHEAD + 1, LARGEST)
    with feeders, Loader(feeders, requests) as loader:
        assert [batch.clock for batch in loader] == clocks
    assert [read(dataset, request).clock for request in requests] == clocks


@pytest.mark.parametrize(("workers", "decoders"), [(4, 4), (4, 3), (8, 4), (2, 3)])
def test_a_worker_with_fewer_lanes_than_decoders_keeps_all_of_them_busy(digits, workers, decoders):
    """They share its lanes, and each window is read once; the images are the same."""
    dataset = dataset_of(digits)
    shares = [np.arange(start, start + 64 * workers, workers) for start in range(0, 1024, 64 * workers)]
    requests = [Request(numbers, 8) for numbers in shares]
    with Feeders(dataset, decoders, BATCHES_AHEAD + 1, LARGEST, workers) as feeders:
        ticket = feeders.start(requests[0])
        given = [len(places) for _, places in ticket.shares]
        assert len(given) == decoders
        assert max(given) <= 1.5 * min(given)
        feeders.receive(ticket)
        with Loader(feeders, requests[1:]) as loader:
            for batch, request in zip(loader, requests[1:], strict=True):
                assert np.array_equal(batch.images, read(dataset, request).images)
        shared = feeders.counts()["data_requests"]
    alone = load(dataset, requests)[2]["data_requests"]
    # at the end, a decoder may be a window ahead, or a lane
    assert shared <= alone + max(decoders, dataset.order.lanes // workers)


def test_a_part_of_a_request_keeps_its_flips_its_resolution_and_its_clock():
    request = Request(np.arange(10, 20), 16, np.arange(10) % 3 == 0, clock=32)
    part = request.take(np.array([9, 0, 3]))
    assert (part.numbers.tolist(), part.mirrored.tolist()) == ([19, 10, 13], [True, True, True])
    assert (part.resolution, part.clock) == (16, 32)
    assert Request(np.arange(4), 8).take(np.array([1])).mirrored is None


@pytest.mark.slow
@pytest.mark.parametrize(("count", "size"), [(1, 1 << 20), (100, 4096)])
def test_windows_that_find_no_room_in_shared_memory_come_all_the_same(digits, monkeypatch, count, size):
    dataset, requests = dataset_of(digits), ask(range(0, 64), range(64, 128), range(128, 192))
    expected = load(dataset, requests)[0]
    few = feeder._Slots(count, size)
    monkeypatch.setattr(feeder._Slots, "for_windows", lambda dataset: few)
    for images, same in zip(load(dataset, requests)[0], expected, strict=True):
        assert np.array_equal(images, same)


def test_mirrored_images_are_the_others_from_right_to_left(digits):
    dataset, numbers = dataset_of(digits), np.arange(16)
    mirrored = numbers % 3 == 0
    plain, flipped = (read(dataset, Request(numbers, 32, m)).images for m in (None, mirrored))
    expected = np.where(mirrored[:, None, None, None], plain[:, :, ::-1], plain)
    assert np.array_equal(flipped, expected)


@pytest.mark.slow
def test_stopped_anywhere_and_started_with_other_workers_the_sequence_of_keys_is_the_same(digits):
    """Over changes of stage with other batch sizes; every worker with a loader of its own."""
    table = [
        Phase(resolution=8, hold_images=96, batch=16),
        Phase(resolution=16, fade_images=48, hold_images=48, batch=24),
        Phase(resolution=32, hold_images=64, batch=8),
    ]
    curriculum, dataset = Curriculum(table, d_steps=2), dataset_of(digits)

    def rows_of(start: int, stop: int, workers: int) -> list[list[int]]:
        """Rows of each global batch, put together from the workers' shares."""
        cycles = list(curriculum.cycles(start, stop))
        starts = [(first, cycle) for cycle in cycles for first in cycle.batches()]
        batches: list[dict[int, int]] = [{} for _ in starts]
        for worker in range(workers):
            shares = [np.arange(first, first + cycle.span.batch) for first, cycle in starts]
            shares = [numbers[numbers % workers == worker] for numbers in shares]
            sizes = [cycle.stage.resolution for _, cycle in starts]
            requests = [Request(*pair) for pair in zip(shares, sizes, strict=True)]
            for batch, numbers, rows in zip(batches, shares, load(dataset, requests)[1], strict=True):
                batch |= dict(zip(numbers.tolist(), rows.tolist(), strict=True))
        return [[row for _, row in sorted(batch.items())] for batch in batches]

    whole = rows_of(0, curriculum.end, 1)
    cycles = [cycle.start for cycle in curriculum.cycles(0, curriculum.end)]
    stop = cycles[len(cycles) // 2]
    assert rows_of(0, stop, 2) + rows_of(stop, curriculum.end, 4) == whole


@pytest.mark.slow
def test_to_start_late_asks_for_no_more_than_to_start_at_0(digits):
    dataset = dataset_of(digits)
    asked = [
        load(dataset, ask(range(start, start + 16)))[2]["data_requests"] for start in (0, 50_000_000)
    ]
    assert 0 < asked[1] <= asked[0] + LANES


@pytest.mark.slow
def test_a_bad_sample_is_counted_and_replaced_by_the_same_other_one(digits, tmp_path):
    copied, rows = damage(digits, tmp_path, [5, 30])
    dataset = dataset_of(copied)
    results = [load(dataset, ask(range(48)), decoders) for decoders in (1, 2)]
    for images, (shown,), counts in results:
        assert counts["bad_samples"] == 2
        assert not set(shown) & set(rows)
        assert len(images[0]) == 48
    assert results[0][1][0].tolist() == results[1][1][0].tolist()
    untouched = load(dataset_of(digits), ask(range(48)))[1][0]
    assert (untouched != results[0][1][0]).sum() == 2


def test_too_many_bad_samples_end_it_naming_the_last(digits, tmp_path):
    copied, _ = damage(digits, tmp_path, range(5))
    with pytest.raises(DataError, match=r"data\.max_bad_samples is 4.*sample \d+"):
        load(dataset_of(copied, max_bad_samples=4), ask(range(48)))


def test_a_window_without_one_good_sample_ends_it(digits, tmp_path):
    copied, _ = damage(digits, tmp_path, range(0, LANES * WINDOW, LANES))
    with pytest.raises(DataError, match=r"sample \d+: every sample in its window is bad"):
        load(dataset_of(copied, max_bad_samples=100), ask(range(48)))


def test_a_shard_that_is_cut_short_is_found_at_the_start_and_while_reading(digits, tmp_path):
    copied = tmp_path / "short"
    shutil.copytree(digits, copied)
    shard = copied / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes()[:5000])
    storage = open_storage(str(copied))
    with pytest.raises(DataError, match=r"shard-000001\.tar: 5000 bytes"):
        check_shards(storage, read_index(storage))
    with pytest.raises(DataError, match=r"shard-000001\.tar.*cut short"):
        load(dataset_of(copied), [Request(np.arange(1600), 4)])


def test_what_is_read_ahead_beyond_the_memory_limit_is_refused(digits):
    dataset = dataset_of(digits)
    check_prefetch(dataset, 1, 1 << 20, 16, 1024)
    for batch, image_bytes in ((16, 1 << 20), (1 << 20, 16)):
        with pytest.raises(DataError, match=r"data\.prefetch_bytes"):
            check_prefetch(dataset, 1, 1 << 20, batch, image_bytes)


def test_no_thread_and_no_process_but_the_starter_is_left_behind(digits):
    starter()
    before, children = set(threading.enumerate()), set(psutil.Process().children(recursive=True))
    endless = (Request(np.arange(n, n + 8), 8) for n in range(0, 10**9, 8))
    with Feeders(dataset_of(digits), 2, BATCHES_AHEAD + 1, LARGEST) as feeders:
        with Loader(feeders, endless) as loader:
            next(loader)
        with Loader(feeders, [Request(np.arange(8), 8)]) as again:
            assert len(next(again).images) == 8
    assert set(threading.enumerate()) <= before
    assert set(psutil.Process().children(recursive=True)) <= children


CHILD = """
import sys, time
import numpy as np
from tests.service.data.test_loader import *
feeders = Feeders(dataset_of(sys.argv[1]), 1, BATCHES_AHEAD + 1, LARGEST)
loader = Loader(feeders, (Request(np.arange(n, n + 8), 8) for n in range(0, 10**9, 8)))
next(loader)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_the_processes_end_with_a_parent_that_is_killed(digits):
    parent = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(digits)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout.readline() == "ready\n"
    children = psutil.Process(parent.pid).children(recursive=True)
    assert sorted(child.name() for child in children)[:2] == ["gan-decoder", "gan-reader"]
    parent.kill()
    parent.wait()
    assert psutil.wait_procs(children, timeout=60)[1] == []


@pytest.mark.parametrize("victim", ["gan-reader", "gan-decoder"])
def test_the_death_of_a_process_is_an_error_and_no_hang(digits, victim):
    before = set(psutil.Process().children(recursive=True))
    with Feeders(dataset_of(digits), 1, BATCHES_AHEAD + 1, LARGEST) as feeders:
        endless = (Request(np.arange(n, n + 64), 32) for n in range(0, 10**9, 64))
        loader = Loader(feeders, endless)
        next(loader)
        processes = set(psutil.Process().children(recursive=True)) - before
        (process,) = (process for process in processes if process.name() == victim)
        assert process.parent().num_threads() == 1  # else it could not be forked safely
        process.kill()
        with pytest.raises(RuntimeError, match="process died"):
            list(loader)
