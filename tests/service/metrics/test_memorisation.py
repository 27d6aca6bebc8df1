"""The test for copying: flags copies, acquits fresh draws, and is the statistic of its paper."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import mannwhitneyu, norm

from service.metrics.memorisation import memorisation


def draws(count: int, seed: int):
    return np.random.default_rng(seed).normal(size=(count, 6)).astype(np.float32)


TRAINING, HELD_OUT = draws(1000, 0), draws(300, 1)


def test_it_is_mann_and_whitneys_statistic_of_the_distances():
    generated = draws(200, 2) * 0.8
    test = memorisation(generated, HELD_OUT, TRAINING)
    ours, theirs = (cdist(side, TRAINING).min(1) for side in (generated, HELD_OUT))
    expected = mannwhitneyu(ours, theirs, alternative="less", method="asymptotic", use_continuity=False)
    assert test.nearer == pytest.approx(1 - expected.statistic / (200 * 300), rel=1e-9)
    assert test.p_value == pytest.approx(expected.pvalue, rel=1e-6)
    assert test.p_value == pytest.approx(norm.cdf(test.z), rel=1e-9)
    np.testing.assert_allclose(test.distances, ours, rtol=1e-5)


def test_fresh_draws_are_acquitted_as_often_as_the_p_value_says():
    """Over 60 sets of fresh draws z is standard normal, but for the training set that all share."""
    tests = [memorisation(draws(300, 10 + i), draws(300, 100 + i), TRAINING) for i in range(60)]
    scores = [test.z for test in tests]
    assert abs(np.mean(scores)) < 4 / 60**0.5
    assert 0.7 < np.std(scores) < 1.3
    assert min(scores) > -3.5
    assert np.mean([test.copies for test in tests]) == pytest.approx(0.01, abs=0.006)
    assert np.mean([test.nearer for test in tests]) == pytest.approx(0.5, abs=0.02)


def test_copies_are_flagged_and_found():
    rows = np.random.default_rng(3).permutation(1000)[:200]
    test = memorisation(TRAINING[rows], HELD_OUT, TRAINING)
    assert test.z < -10
    assert test.p_value < 1e-20
    assert (test.nearer, test.copies) == (1, 1)
    assert np.array_equal(test.indices, rows)
    assert not test.distances.any()


def test_almost_copies_are_flagged():
    test = memorisation(TRAINING[:200] + 0.05 * draws(200, 4), HELD_OUT, TRAINING)
    assert test.z < -10
    assert np.array_equal(test.indices, np.arange(200))


def test_a_few_copies_among_poor_images_show_in_the_share_of_copies():
    generated = np.concatenate([draws(180, 5) * 3, TRAINING[:20]])
    test = memorisation(generated, HELD_OUT, TRAINING)
    assert test.z > 3
    assert test.copies == pytest.approx(0.1, abs=0.011)


def test_images_unlike_any_are_no_copies():
    test = memorisation(draws(200, 6) + 20, HELD_OUT, TRAINING)
    assert test.z > 10
    assert (test.nearer, test.copies) == (0, 0)
    assert test.p_value == 1


def test_ties_count_by_half():
    same = np.zeros((30, 2), np.float32)
    test = memorisation(same, same, same + 1)
    assert (test.z, test.nearer, test.p_value) == (0, 0.5, 0.5)


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="20 generated images or more, found 19"):
        memorisation(TRAINING[:19], HELD_OUT, TRAINING)
    with pytest.raises(ValueError, match="20 held-out images or more, found 3"):
        memorisation(TRAINING, HELD_OUT[:3], TRAINING)
