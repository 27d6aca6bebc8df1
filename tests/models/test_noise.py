"""Normals from seeds: they are normal, each seed's are its own, and none goes with another."""

import numpy as np
import pytest
import torch
from scipy import stats

from models.noise import normals

COUNT = 1 << 16


def drawn(*seeds: int, count: int = COUNT) -> np.ndarray:
    return normals(torch.tensor(seeds), count).numpy()


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
def test_they_are_standard_normals(seed):
    assert stats.kstest(drawn(seed)[0], "norm").pvalue > 1e-3


def test_the_same_seed_gives_the_same_whatever_stands_beside_it():
    alone = drawn(7)
    assert np.array_equal(drawn(5, 7, 6)[1], alone[0])
    assert np.array_equal(drawn(7, 7)[0], drawn(7, 7)[1])


@pytest.mark.parametrize("count", [1, 2, 5])
def test_there_are_as_many_as_asked_for(count):
    values = drawn(3, 4, count=count)
    assert values.shape == (2, count)
    assert values.dtype == np.float32
    assert np.isfinite(values).all()


def test_neighbouring_seeds_and_places_go_their_own_ways():
    """All correlations of 64 seeds in a row, in place and shifted by one, are those of chance."""
    values = drawn(*range(64)).astype(np.float64)
    limit = 6 / np.sqrt(COUNT)  # six deviations, of some 8,000 pairs
    between = np.corrcoef(values) - np.eye(64)
    shifted = values[:, 1:] @ values[:, :-1].T / COUNT
    assert abs(between).max() < limit
    assert abs(shifted).max() < limit
    # nor do the same values come in another order
    assert len(np.intersect1d(*np.float32(drawn(1, 2)))) < COUNT / 100


def test_squares_and_neighbours_squares_do_not_go_together():
    values = drawn(11)[0].astype(np.float64)
    squares = values**2 - 1
    for lag in (1, 2, COUNT // 2):
        assert abs(np.mean(squares[lag:] * squares[:-lag])) < 12 / np.sqrt(COUNT)
