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
    found = memorisation(generated, HELD_OUT, TRAINING)
    ours, theirs = (cdist(side, TRAINING).min(1) for side in (generated, HELD_OUT))
    expected = mannwhitneyu(ours, theirs, alternative="less", method="asymptotic", use_continuity=False)
    assert found.nearer == pytest.approx(1 - expected.statistic / (200 * 300), rel=1e-9)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-6)
    assert found.p_value == pytest.approx(norm.cdf(found.z), rel=1e-9)
    np.testing.assert_allclose(found.distances, ours, rtol=1e-5)


def test_fresh_draws_are_acquitted_as_often_as_the_p_value_says():
    """Over 60 sets of fresh draws z is standard normal, but for the training set that all share."""
    found = [memorisation(draws(300, 10 + i), draws(300, 100 + i), TRAINING) for i in range(60)]
    scores = [test.z for test in found]
    assert abs(np.mean(scores)) < 4 / 60**0.5
    assert 0.7 < np.std(scores) < 1.3
    assert min(scores) > -3.5
    assert np.mean([test.copies for test in found]) == pytest.approx(0.01, abs=0.006)
    assert np.mean([test.nearer for test in found]) == pytest.approx(0.5, abs=0.02)


def test_copies_are_flagged_and_found():
    rows = np.random.default_rng(3).permutation(1000)[:200]
    found = memorisation(TRAINING[rows], HELD_OUT, TRAINING)
    assert found.z < -10
    assert found.p_value < 1e-20
    assert (found.nearer, found.copies) == (1, 1)
    assert np.array_equal(found.indices, rows)
    assert not found.distances.any()


def test_almost_copies_are_flagged():
    found = memorisation(TRAINING[:200] + 0.05 * draws(200, 4), HELD_OUT, TRAINING)
    assert found.z < -10
    assert np.array_equal(found.indices, np.arange(200))


def test_a_few_copies_among_poor_images_show_in_the_share_of_copies():
    generated = np.concatenate([draws(180, 5) * 3, TRAINING[:20]])
    found = memorisation(generated, HELD_OUT, TRAINING)
    assert found.z > 3
    assert found.copies == pytest.approx(0.1, abs=0.011)


def test_images_unlike_any_are_no_copies():
    found = memorisation(draws(200, 6) + 20, HELD_OUT, TRAINING)
    assert found.z > 10
    assert (found.nearer, found.copies) == (0, 0)
    assert found.p_value == 1


def test_ties_count_by_half():
    same = np.zeros((30, 2), np.float32)
    found = memorisation(same, same, same + 1)
    assert (found.z, found.nearer, found.p_value) == (0, 0.5, 0.5)


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="20 generated images or more, found 19"):
        memorisation(TRAINING[:19], HELD_OUT, TRAINING)
    with pytest.raises(ValueError, match="20 held-out images or more, found 3"):
        memorisation(TRAINING, HELD_OUT[:3], TRAINING)
