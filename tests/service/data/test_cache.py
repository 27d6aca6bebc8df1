"""The cache on a node: right bytes from any number of processes, and never more than its limit."""

import fcntl
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from service.data import cache as cache_module
from service.data.cache import BLOCK_BYTES, Cache, CachedShards
from service.data.dataset import Dataset, Request, read
from service.data.index import read_index
from service.data.order import Order
from service.storage import open_storage
from tests.conftest import ROOT


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(cache_module, "BLOCK_BYTES", 10_000)


def shards_of(digits, folder, limit=1 << 30) -> CachedShards:
    storage = open_storage(str(digits))
    return CachedShards(storage, read_index(storage), Cache(str(folder), limit))


def size_of(folder) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.block"))


def test_any_range_is_what_the_storage_holds_and_the_second_time_it_is_at_hand(
    digits, tmp_path, small_blocks
):
    shards, plain = shards_of(digits, tmp_path), open_storage(str(digits))
    name = shards.index.names[-1]
    size = shards.index.shards[name]
    rng = np.random.default_rng(0)
    ranges = [(int(a), int(b)) for a, b in rng.integers(0, size, (50, 2))] + [(0, 10**9), (size, 5)]
    for _ in range(2):
        for start, length in ranges:
            assert shards.get(name, start, length) == plain.get(name, start, length)
        requests = shards.storage.traffic.requests
    assert requests - 1 == shards.cache.misses == -(-size // 10_000)  # one for the index
    assert shards.cache.hits > shards.cache.misses


def test_it_holds_no_more_than_its_limit_and_lets_the_oldest_go(digits, tmp_path, small_blocks):
    shards = shards_of(digits, tmp_path, limit=100_000)
    name = shards.index.names[0]
    for start in range(0, 800_000, 10_000):
        shards.get(name, start, 10)
        shards.get(name, 0, 10)  # which stays young
        assert size_of(tmp_path) <= 100_000
    assert size_of(tmp_path) >= 80_000
    before = shards.cache.misses
    shards.get(name, 0, 10)
    assert shards.cache.misses == before


def test_it_leaves_room_on_the_disk_and_says_so_once(
    digits, tmp_path, small_blocks, monkeypatch, caplog
):
    disk = 200_000  # of which the cache's own blocks take a part

    def usage(folder):
        return SimpleNamespace(free=max(0, disk - size_of(tmp_path)))

    monkeypatch.setattr(cache_module.shutil, "disk_usage", usage)
    shards = shards_of(digits, tmp_path)
    for name, size in shards.index.shards.items():
        shards.get(name, 0, size)
    assert 0 < size_of(tmp_path) <= 0.95 * disk
    told = [r.getMessage() for r in caplog.records if "event=cache_limited" in r.getMessage()]
    assert len(told) == 1


def test_a_block_that_is_cut_short_is_read_anew(digits, tmp_path, small_blocks):
    shards = shards_of(digits, tmp_path)
    name = shards.index.names[0]
    expected = shards.get(name, 0, 10_000)
    (block,) = tmp_path.glob("*.block")
    block.write_bytes(b"short")
    assert shards.get(name, 0, 10_000) == expected


@pytest.mark.parametrize("place", [0, 70_000, 150_000, -1, -40])
def test_a_block_whose_bytes_changed_is_never_shown_and_is_stored_again(digits, tmp_path, place):
    shards = shards_of(digits, tmp_path)
    name = shards.index.names[0]
    expected = shards.get(name)
    (block,) = tmp_path.glob("*.block")
    good = block.read_bytes()
    damaged = bytearray(good)
    damaged[place] ^= 1
    block.write_bytes(damaged)
    for start in range(0, len(expected), 50_000):
        assert shards.get(name, start, 50_000) == expected[start : start + 50_000]
    assert shards.cache.misses == 2
    assert block.read_bytes() == good


def test_a_stopped_process_that_holds_the_lock_holds_up_nobody(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "_LOCK_LIMIT_S", 0.05)
    shards = shards_of(digits, tmp_path)
    with open(tmp_path / "bytes", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        name = shards.index.names[0]
        assert shards.get(name, 5, 9) == open_storage(str(digits)).get(name, 5, 9)
    assert size_of(tmp_path) == 0


def test_a_folder_that_cannot_be_used_costs_the_cache_alone(digits, tmp_path):
    (tmp_path / "file").write_text("")
    shards = shards_of(digits, tmp_path / "file")
    name = shards.index.names[0]
    assert shards.get(name, 5, 9) == open_storage(str(digits)).get(name, 5, 9)


READER = """
import sys
from pathlib import Path
from service.data import cache as cache_module
from tests.service.data.test_cache import *
cache_module.BLOCK_BYTES = 10_000
shards, plain = shards_of(Path(sys.argv[1]), Path(sys.argv[2]), 200_000), open_storage(sys.argv[1])
name = shards.index.names[0]
rng = np.random.default_rng(int(sys.argv[3]))
for start in rng.integers(0, 1_000_000, 300).tolist():
    assert shards.get(name, start, 5000) == plain.get(name, start, 5000)
print(shards.cache.hits)
"""


@pytest.mark.slow
def test_several_processes_share_it(digits, tmp_path):
    arguments = [sys.executable, "-c", READER, str(digits), str(tmp_path)]
    readers = [
        subprocess.Popen([*arguments, str(seed)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for seed in range(3)
    ]
    hits = [int(reader.communicate(timeout=300)[0]) for reader in readers]
    assert all(reader.returncode == 0 for reader in readers)
    assert sum(hits) > 0
    assert size_of(tmp_path) <= 200_000
    assert not list(tmp_path.glob("*.part"))


def test_several_threads_share_it(digits, tmp_path, small_blocks):
    shards = shards_of(digits, tmp_path, limit=100_000)
    plain, name, wrong = open_storage(str(digits)), shards.index.names[0], []

    def reader(seed):
        for start in np.random.default_rng(seed).integers(0, 500_000, 100).tolist():
            if shards.get(name, start, 15_000) != plain.get(name, start, 15_000):
                wrong.append(start)

    threads = [threading.Thread(target=reader, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert size_of(tmp_path) <= 100_000


def test_a_training_reads_through_it(digits, tmp_path):
    index = read_index(open_storage(str(digits)))
    order = Order(index, index.rows(False), 0, 8, 64)
    plain = Dataset(str(digits), index, order, 1)
    cached = Dataset(str(digits), index, order, 1, cache_dir=str(tmp_path), cache_bytes=1 << 30)
    request = Request(np.arange(100), 8)
    expected = read(plain, request)
    for _ in range(2):
        assert np.array_equal(read(cached, request).images, expected.images)
    assert 0 < size_of(tmp_path) <= len(index.shards) * BLOCK_BYTES
