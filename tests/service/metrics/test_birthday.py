"""The size of a support from near-duplicates: the paradox's own formula, on supports that are known."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import pdist

from service.metrics import distances
from service.metrics.birthday import birthday, nearest_pairs

HELD_OUT = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)


def points(count: int, seed: int = 1):
    return np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32)


@given(st.integers(1, 30), st.integers(2, 6))
def test_each_of_n_images_drawn_k_times_gives_the_known_estimate(support, times):
    """Nk draws hold N·k(k − 1)/2 pairs of equals: Nk(Nk − 1)/2 over that is (Nk − 1)/(k − 1)."""
    apart = np.arange(support)[:, None] * np.full(8, 100, np.float32)
    estimate = birthday(np.repeat(apart, times, axis=0), HELD_OUT)
    assert estimate.pairs == support * times * (times - 1) // 2
    assert estimate.support == pytest.approx((support * times - 1) / (times - 1))


def test_uniform_draws_give_the_number_of_different_images():
    rng = np.random.default_rng(2)
    images = 1000 * points(300)
    estimates = [birthday(images[rng.integers(300, size=200)], HELD_OUT).support for _ in range(20)]
    assert np.mean(estimates) == pytest.approx(300, rel=0.15)


def test_without_a_near_pair_it_is_a_lower_bound():
    estimate = birthday(1000 * points(100), HELD_OUT)
    assert (estimate.pairs, estimate.support) == (0, 100 * 99 / 2)


def test_a_pair_counts_if_it_is_nearer_than_any_two_held_out_images(monkeypatch):
    monkeypatch.setattr(distances, "BLOCK_ROWS", 17)  # several blocks, the last one short
    generated = 0.5 * points(100)
    estimate = birthday(generated, HELD_OUT)
    assert estimate.distance == pytest.approx(pdist(HELD_OUT.astype(float)).min(), rel=1e-6)
    assert estimate.pairs == (pdist(generated.astype(float)) < pdist(HELD_OUT).min()).sum() > 5


def test_real_images_come_as_near_as_real_images_come_and_no_nearer():
    assert birthday(HELD_OUT, HELD_OUT).pairs == 0


def test_equal_held_out_images_count_as_one():
    twice = np.concatenate([HELD_OUT, HELD_OUT[:5]])
    once = birthday(points(100), HELD_OUT)
    assert dataclasses.astuple(birthday(points(100), twice)) == pytest.approx(dataclasses.astuple(once))
    assert birthday(points(100), np.ones((9, 8), np.float32)).pairs == 0


def test_the_nearest_pairs_come_nearest_first(monkeypatch):
    monkeypatch.setattr(distances, "BLOCK_ROWS", 17)
    generated = points(50)
    pairs = nearest_pairs(generated, 12)
    rows, columns = np.triu_indices(50, 1)
    order = np.argsort(pdist(generated.astype(float)))[:12]
    assert pairs.tolist() == np.stack([rows, columns], 1)[order].tolist()
    assert len(nearest_pairs(generated[:3], 12)) == 3
