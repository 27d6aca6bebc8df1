"""Shares of images: each image once, whole blocks, and back in order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.metrics.shares import BLOCK, join, share


@given(count=st.integers(0, 1000), workers=st.integers(1, 9))
def test_shares_hold_each_number_once_and_join_puts_them_in_order(count, workers):
    shares = [share(count, worker, workers) for worker in range(workers)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(count))
    values = np.random.default_rng(count).normal(size=(count, 3)).astype(np.float32)
    joined = join([values[numbers] for numbers in shares])
    assert np.array_equal(joined, values)
    assert joined.dtype == np.float32


@given(count=st.integers(1, 1000), workers=st.integers(1, 9), worker=st.integers(0, 8))
def test_a_share_is_cut_into_the_same_batches_as_the_whole(count, workers, worker):
    numbers = share(count, worker % workers, workers)
    for start in range(0, len(numbers), BLOCK):
        block = numbers[start : start + BLOCK]
        assert block[0] % BLOCK == 0
        whole = range(block[0], min(block[0] + BLOCK, count))
        assert block.tolist() == list(whole)


def test_parts_that_are_not_shares_are_refused():
    with pytest.raises(ValueError, match="worker 0 of 2 gave 50 of 100 images, its share is 64"):
        join([np.zeros(50), np.zeros(50)])
    with pytest.raises(ValueError, match="worker 2 of 2: give 0 to 1"):
        share(10, 2, 2)
