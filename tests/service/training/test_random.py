"""Latents and labels: what they are distributed as, and that they depend on nothing but their number."""

import numpy as np
from scipy import stats

from service.training.random import Draws

DRAWS = Draws(seed=0, role="discriminator", attempt=0)


def test_latents_are_standard_normal_and_independent():
    latents = DRAWS.latents(np.arange(20_000), 5)
    assert stats.kstest(latents.ravel(), "norm").pvalue > 1e-3
    correlation = np.corrcoef(latents.T)
    assert abs(correlation - np.eye(5)).max() < 0.03


def test_labels_are_even():
    counts = np.bincount(DRAWS.labels(np.arange(50_000), 10), minlength=10)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_a_share_draws_what_the_whole_draws():
    numbers = np.arange(1000, 1064)
    whole = DRAWS.latents(numbers, 7)
    for worker in range(4):
        assert np.array_equal(DRAWS.latents(numbers[worker::4], 7), whole[worker::4])


def test_role_seed_and_attempt_each_give_other_draws():
    others = [Draws(1, "discriminator", 0), Draws(0, "generator", 0), Draws(0, "discriminator", 1)]
    for other in others:
        assert not np.allclose(other.latents(np.arange(4), 4), DRAWS.latents(np.arange(4), 4))
