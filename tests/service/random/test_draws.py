"""Latents and labels: what they are distributed as, and that they depend on nothing but their number."""

import numpy as np
import pytest
from scipy import stats

from service.random.draws import Draws

DRAWS = Draws(seed=0, role="discriminator", attempt=0)


def test_latents_are_standard_normal_and_independent():
    latents = DRAWS.latents(np.arange(20_000), 5)
    assert stats.kstest(latents.ravel(), "norm").pvalue > 1e-3
    correlation = np.corrcoef(latents.T)
    assert abs(correlation - np.eye(5)).max() < 0.03


def test_labels_are_even():
    counts = np.bincount(DRAWS.labels(np.arange(50_000), 10), minlength=10)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_labels_follow_the_counts_that_they_are_given():
    counts = np.array([0, 700, 1, 299])
    drawn = np.bincount(DRAWS.labels(np.arange(50_000), 4, counts), minlength=4)
    assert drawn[0] == 0
    assert stats.chisquare(drawn[1:], counts[1:] * 50).pvalue > 1e-3
    even = DRAWS.labels(np.arange(500), 4, np.full(4, 1))
    assert np.array_equal(even, DRAWS.labels(np.arange(500), 4))


def test_a_share_draws_what_the_whole_draws():
    numbers = np.arange(1000, 1064)
    whole = DRAWS.latents(numbers, 7)
    for worker in range(4):
        assert np.array_equal(DRAWS.latents(numbers[worker::4], 7), whole[worker::4])


@pytest.mark.parametrize("truncation", [0.3, 1.0, 2.5, None])
def test_truncated_latents_are_normals_that_lie_within_the_threshold(truncation):
    latents = DRAWS.truncated(np.arange(5000), 4, truncation)
    bound = np.inf if truncation is None else truncation
    assert np.abs(latents).max() <= bound
    assert stats.kstest(latents.ravel(), stats.truncnorm(-bound, bound).cdf).pvalue > 1e-3


def test_latents_of_one_number_shrink_together_with_the_threshold():
    wide, narrow = (DRAWS.truncated(np.arange(100), 4, bound) for bound in (2.0, 1.0))
    assert np.all(np.abs(narrow) <= np.abs(wide))
    assert np.all(np.sign(narrow) == np.sign(wide))


def test_kinds_of_uniforms_are_even_and_apart():
    numbers = np.arange(5000)
    first, second = (DRAWS.uniforms(numbers, kind, 2) for kind in ("penalty", "mixing"))
    assert stats.kstest(first.ravel(), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(first[:, 0], second[:, 0])[0, 1]) < 0.05
    seeds = DRAWS.seeds(numbers, "noise")
    assert len(set(seeds)) > 4990
    assert 0 <= min(seeds) <= max(seeds) < 2**32


def test_without_classes_all_labels_are_0():
    assert not DRAWS.labels(np.arange(50), None).any()


def test_role_seed_and_attempt_each_give_other_draws():
    others = [Draws(1, "discriminator", 0), Draws(0, "generator", 0), Draws(0, "discriminator", 1)]
    for other in others:
        assert not np.allclose(other.latents(np.arange(4), 4), DRAWS.latents(np.arange(4), 4))
