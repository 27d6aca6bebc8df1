"""The order of samples: laws that hold for any sizes, seeds, lanes and workers."""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.data.index import Index
from service.data.order import Order
from service.errors import DataError


def make_index(shard_sizes: list[int]) -> Index:
    shard = np.repeat(np.arange(len(shard_sizes)), shard_sizes).astype(np.int32)
    count = len(shard)
    zeros = np.zeros(count, np.int64)
    return Index(
        {f"shard-{i}.tar": 1 for i in range(len(shard_sizes))},
        shard,
        zeros,
        zeros.astype(np.int32),
        zeros.astype(np.int32),
        np.arange(count) % 7 == 3,
        pa.array([str(i) for i in range(count)], pa.string()),
    )


@st.composite
def orders(draw) -> Order:
    index = make_index(draw(st.lists(st.integers(1, 40), min_size=1, max_size=6)))
    rows = index.rows(held_out=False)
    lanes = draw(st.integers(1, min(len(rows), 16)))
    return Order(index, rows, draw(st.integers(0, 9)), lanes, draw(st.integers(1, 9)))


def row(of: Order, number: int) -> int:
    ((window, inside),) = of.places(np.array([number]))
    return int(of.window_rows(window)[inside])


def rows(of: Order, numbers: Iterable[int]) -> list[int]:
    return [row(of, number) for number in numbers]


@given(orders(), st.integers(0, 5))
def test_an_epoch_shows_each_sample_once_but_for_fewer_than_lanes(order, epoch):
    length = order.lanes * order.lane_samples
    shown = [row(order, epoch * length + i) for i in range(length)]
    assert len(set(shown)) == len(shown)
    assert set(shown) <= set(order.rows.tolist())
    assert len(order.rows) - len(shown) < order.lanes


@given(orders(), st.integers(0, 10_000), st.sampled_from([1, 2, 3, 4, 6]))
def test_workers_own_whole_lanes_and_share_every_batch(order, start, workers):
    """Worker w of W takes the samples congruent to w mod W, which are those of its lanes."""
    if order.lanes % workers:
        workers = 1
    batch = range(start, start + 2 * order.lanes)
    shares = [[n for n in batch if n % workers == w] for w in range(workers)]
    for worker, numbers in enumerate(shares):
        assert {place.window.lane % workers for place in order.places(np.array(numbers))} == {worker}
    shown = [sample for share in shares for sample in rows(order, share)]
    assert sorted(shown) == sorted(rows(order, batch))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 1000))
def test_the_place_of_a_sample_does_not_depend_on_what_was_asked_before(sizes, number):
    index = make_index(sizes)
    rows = index.rows(False)
    used, fresh = (Order(index, rows, 1, len(rows), 3) for _ in range(2))
    for before in (0, 7, 5000):
        row(used, before)
    assert row(used, number) == row(fresh, number)


def test_epochs_differ_and_seeds_differ():
    index = make_index([50, 50])
    rows = index.rows(False)
    sequences = [
        [row(Order(index, rows, seed, 4, 8), epoch * 84 + i) for i in range(84)]
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert len({tuple(sequence) for sequence in sequences}) == 3


def test_what_is_left_over_differs_from_epoch_to_epoch():
    index = make_index([40, 23])
    rows = index.rows(False)
    of = Order(index, rows, 0, 8, 4)
    length = of.lanes * of.lane_samples
    left = [
        frozenset(rows.tolist()) - {row(of, e * length + i) for i in range(length)} for e in range(6)
    ]
    assert all(left)
    assert len(set(left)) > 1


def test_an_order_of_some_rows_shows_no_others():
    index = make_index([30, 30])
    for held_out in (False, True):
        of = Order(index, index.rows(held_out), 0, 4, 4)
        assert all(index.held_out[row(of, number)] == held_out for number in range(40))


def test_the_next_window_of_a_lane_is_the_one_that_its_next_samples_fall_in():
    index = make_index([30, 30])
    of = Order(index, index.rows(False), 0, 4, 5)
    for number in range(200):
        here, later = of.places(np.array([number, number + of.lanes]))
        assert later.window in (here.window, of.following(here.window))


def test_more_lanes_than_samples_is_refused():
    index = make_index([5])
    with pytest.raises(DataError, match=r"data\.lanes: 9"):
        Order(index, index.rows(False), 0, 9, 4)


def shuffle_buffer(shard_sizes: list[int], size: int, rng: np.random.Generator) -> Iterator[int]:
    """What a shuffle buffer of `size` shows of shuffled shards, as packing positions."""
    starts = np.concatenate([[0], np.cumsum(shard_sizes)])
    buffer: list[int] = []
    for shard in rng.permutation(len(shard_sizes)):
        for position in range(starts[shard], starts[shard + 1]):
            if len(buffer) < size:
                buffer.append(position)
                continue
            i = rng.integers(size)
            yield buffer[i]
            buffer[i] = position
    rng.shuffle(buffer)
    yield from buffer


@pytest.mark.slow
@pytest.mark.parametrize("shard_sizes", [[1000] * 60, [30_000], [200] * 300])
def test_a_batch_is_mixed_no_worse_than_by_a_shuffle_buffer_of_10_000(shard_sizes):
    """By the spread of the packing positions in a batch, as a share of that of all."""
    index, batch = make_index(shard_sizes), 64
    everything = np.arange(sum(shard_sizes))
    of = Order(index, everything, 0, lanes=64, window=64)
    ours = np.array(rows(of, range(200 * batch)))
    shown = shuffle_buffer(shard_sizes, 10_000, np.random.default_rng(0))
    theirs = np.array([next(shown) for _ in range(200 * batch)])
    spread = [p.reshape(-1, batch).std(1).mean() / everything.std() for p in (ours, theirs)]
    assert spread[0] > 0.97 * spread[1]
    assert spread[0] > 0.9
