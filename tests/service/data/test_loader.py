"""Batches through the public door: whole, in order, with bad samples replaced and counted."""

import shutil
import threading

import numpy as np
import pytest

from service.data.index import check_labels, check_shards, read_index
from service.data.loader import Loader, Request, Samples, check_prefetch
from service.data.order import Order, at
from service.errors import DataError
from service.storage import open_storage


def load(folder, numbers, max_bad_samples=10, lanes=8):
    storage = open_storage(str(folder))
    index = read_index(storage)
    order = Order(index, index.rows(False), 0, lanes, 16)
    samples = Samples(storage, index, order, 1, 2, max_bad_samples)
    requests = [Request(np.array(chunk), 8) for chunk in numbers]
    with Loader(samples, requests) as loader:
        return index, list(loader), samples.bad


def damage(folder, tmp_path, numbers):
    """A copy of the data in which the images of these sample numbers are no images."""
    copied = tmp_path / "damaged"
    shutil.copytree(folder, copied)
    index = read_index(open_storage(str(copied)))
    rows = [at(index, 0, 8, 16, number)[1] for number in numbers]
    for row in rows:
        with open(copied / index.names[index.shard[row]], "r+b") as file:
            file.seek(int(index.offset[row]))
            file.write(b"\0" * int(index.size[row]))
    return copied, rows


def test_samples_come_in_the_order_that_was_asked_for(digits):
    numbers = [range(0, 24), range(24, 48), range(100_000, 100_024)]
    index, batches, bad = load(digits, numbers)
    assert not bad
    for chunk, batch in zip(numbers, batches, strict=True):
        assert batch.images.shape == (24, 8, 8, 1)
        assert batch.rows.tolist() == [at(index, 0, 8, 16, n)[1] for n in chunk]
        assert batch.labels.tolist() == index.label[batch.rows].tolist()


def test_a_bad_sample_is_counted_and_replaced_by_the_same_other_one(digits, tmp_path):
    copied, rows = damage(digits, tmp_path, [5, 30])
    results = [load(copied, [range(48)]) for _ in range(2)]
    for _, (batch,), bad in results:
        assert sorted(row for row, _ in bad) == sorted(rows)
        assert not set(batch.rows) & set(rows)
        assert len(batch.images) == 48
    assert results[0][1][0].rows.tolist() == results[1][1][0].rows.tolist()
    untouched = load(digits, [range(48)])[1][0].rows
    assert (untouched != results[0][1][0].rows).sum() == 2


def test_too_many_bad_samples_end_it_naming_the_last(digits, tmp_path):
    copied, _ = damage(digits, tmp_path, range(5))
    with pytest.raises(DataError, match=r"data\.max_bad_samples is 4.*sample \d+"):
        load(copied, [range(48)], max_bad_samples=4)


def test_a_shard_that_is_cut_short_is_found_at_the_start_and_while_reading(digits, tmp_path):
    copied = tmp_path / "short"
    shutil.copytree(digits, copied)
    shard = copied / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes()[:5000])
    storage = open_storage(str(copied))
    with pytest.raises(DataError, match=r"shard-000001\.tar: 5000 bytes"):
        check_shards(storage, read_index(storage))
    with pytest.raises(DataError, match=r"shard-000001\.tar.*cut short"):
        load(copied, [range(1600)])


def test_a_missing_shard_is_named(digits, tmp_path):
    copied = tmp_path / "missing"
    shutil.copytree(digits, copied)
    (copied / "shard-000002.tar").unlink()
    storage = open_storage(str(copied))
    with pytest.raises(DataError, match=r"shard-000002\.tar: missing"):
        check_shards(storage, read_index(storage))


def test_a_label_outside_the_classes_is_named(digits):
    with pytest.raises(DataError, match=r"sample \d+: label 9 is outside 0 … 8"):
        check_labels(read_index(open_storage(str(digits))), 9)


@pytest.mark.parametrize("content", [b"", b"PAR1 no parquet PAR1"])
def test_a_damaged_index_says_pack_again(tmp_path, content):
    (tmp_path / "index.parquet").write_bytes(content)
    with pytest.raises(DataError, match="pack again"):
        read_index(open_storage(str(tmp_path)))


def test_windows_beyond_the_memory_limit_are_refused(digits):
    index = read_index(open_storage(str(digits)))
    order = Order(index, index.rows(False), 0, 8, 16)
    check_prefetch(index, order, 1, 1 << 20)
    with pytest.raises(DataError, match=r"data\.prefetch_bytes"):
        check_prefetch(index, order, 1, 1000)


def test_no_thread_is_left_behind(digits):
    before = set(threading.enumerate())
    storage = open_storage(str(digits))
    index = read_index(storage)
    samples = Samples(storage, index, Order(index, index.rows(False), 0, 8, 16), 1, 2, 0)
    endless = (Request(np.arange(n, n + 8), 8) for n in range(0, 10**9, 8))
    with Loader(samples, endless) as loader:
        next(loader)
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=30)
        assert not thread.is_alive()
