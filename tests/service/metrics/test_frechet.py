"""The Fréchet distance against closed forms and SciPy, and moments against NumPy's."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import sqrtm

from service.metrics.frechet import Moments, frechet_distance, moments


def samples(count: int, width: int, seed: int) -> NDArray[np.float64]:
    """Correlated features whose mean and scale differ from seed to seed."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((width, width))
    return random.standard_normal((count, width)) @ mixing + random.standard_normal(width)


def by_matrix_root(a: Moments, b: Moments) -> float:
    """The definition, with a general square root of the product of the covariances."""
    root = np.real(sqrtm(a.covariance @ b.covariance))
    shift = a.mean - b.mean
    return float(shift @ shift + np.trace(a.covariance + b.covariance - 2 * root))


def test_in_one_dimension_it_is_the_squared_difference_of_means_and_of_deviations():
    a = Moments(10, np.array([1.0]), np.array([[4.0]]))
    b = Moments(10, np.array([4.0]), np.array([[0.25]]))
    assert frechet_distance(a, b) == pytest.approx(3**2 + (2 - 0.5) ** 2, rel=1e-12)


def test_independent_features_add_up():
    random = np.random.default_rng(1)
    means, deviations = random.standard_normal((2, 30)), random.uniform(0, 3, (2, 30))
    a, b = (Moments(99, m, np.diag(s**2)) for m, s in zip(means, deviations, strict=True))
    expected = ((means[0] - means[1]) ** 2 + (deviations[0] - deviations[1]) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_definition_on_full_rank_covariances(seed):
    a, b = moments(samples(200, 40, seed)), moments(samples(300, 40, seed + 10))
    assert frechet_distance(a, b) == pytest.approx(by_matrix_root(a, b), rel=1e-8)


def test_fewer_samples_than_features_equal_the_distance_within_their_span():
    """Both sets lie in a space of 6 dimensions, embedded in 50 by an isometry."""
    inside = [samples(20, 6, seed) for seed in (4, 5)]
    basis = np.linalg.qr(np.random.default_rng(6).standard_normal((50, 6)))[0]
    embedded = [moments(points @ basis.T) for points in inside]
    expected = by_matrix_root(*map(moments, inside))
    assert frechet_distance(*embedded) == pytest.approx(expected, rel=1e-6)


def test_fewer_samples_than_features_equal_the_nuclear_norm_formula():
    """tr (C_a C_b)^½ is the sum of the singular values of X_b X_aᵀ, X the centred samples."""
    sets = [samples(n, 40, seed) for n, seed in ((12, 7), (9, 8))]
    a, b = (moments(points) for points in sets)
    centred = [(points - points.mean(0)) / np.sqrt(len(points) - 1) for points in sets]
    overlap = np.linalg.svd(centred[1] @ centred[0].T, compute_uv=False).sum()
    expected = ((a.mean - b.mean) ** 2).sum() + sum((x**2).sum() for x in centred) - 2 * overlap
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("counts", [(100, 150), (10, 7)], ids=["full rank", "rank-deficient"])
def test_is_symmetric_and_zero_to_itself(counts):
    a, b = (moments(samples(count, 30, count)) for count in counts)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)
    assert 0 <= frechet_distance(a, a) < 1e-6 * np.trace(a.covariance)


def test_moments_are_numpys_even_far_from_zero_and_in_float32():
    features = (1000 + samples(64, 5, 2)).astype(np.float32)
    result = moments(features)
    assert result.count == 64
    np.testing.assert_allclose(result.mean, features.mean(0, dtype=np.float64), rtol=1e-14)
    np.testing.assert_allclose(result.covariance, np.cov(features.T, dtype=np.float64), rtol=1e-10)


def test_sets_of_another_width_or_of_one_image_are_refused():
    a = moments(samples(10, 4, 0))
    with pytest.raises(ValueError, match="features of 4 and of 3 numbers"):
        frechet_distance(a, moments(samples(10, 3, 0)))
    single = moments(samples(1, 4, 0))
    for pair in ((a, single), (single, a)):
        with pytest.raises(ValueError, match="at least 2 images, found 1"):
            frechet_distance(*pair)


def test_nothing_to_measure_is_refused():
    with pytest.raises(ValueError, match=r"found \[0, 4\]"):
        moments(np.zeros((0, 4)))
    with pytest.raises(ValueError, match=r"found \[4\]"):
        moments(np.zeros(4))
