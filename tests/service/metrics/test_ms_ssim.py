"""MS-SSIM of pairs against the formula worked with SciPy, and as a measure of diversity."""

import numpy as np
import pytest
from scipy.ndimage import correlate1d
from sklearn.datasets import load_digits

from service.metrics.ms_ssim import SMALLEST, WEIGHTS, draw_pairs, ms_ssim, scales

RANDOM = np.random.default_rng(0)


def by_formula(a, b, weights):
    """Wang et al. 2003, eq. 7: contrast and structure of all scales, luminance of the last.

    Contrast where the window fits, the last scale's product over the image mirrored at its edges,
    as torchmetrics has it.
    """
    window = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    result = 1.0
    for scale, weight in enumerate(weights):
        blurred = [
            correlate1d(correlate1d(x, window, axis=0, mode="mirror"), window, axis=1, mode="mirror")
            for x in (a, b, a * a, b * b, a * b)
        ]
        mean_a, mean_b, squares_a, squares_b, products = blurred
        covariance = products - mean_a * mean_b
        contrast = (2 * covariance + c2) / (squares_a - mean_a**2 + squares_b - mean_b**2 + c2)
        luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
        last = scale == len(weights) - 1
        value = (luminance * contrast).mean() if last else contrast[5:-5, 5:-5].mean()
        result *= max(value, 0) ** weight
        if not last:
            a, b = (x.reshape(len(x) // 2, 2, -1, 2).mean((1, 3)) for x in (a, b))
    return result


@pytest.mark.parametrize("side", [16, 32, 64, 176])
def test_it_is_the_formula_at_every_number_of_scales(side):
    base = RANDOM.integers(0, 256, (side, side))
    other = (0.7 * base + 0.3 * RANDOM.integers(0, 256, (side, side))).round()
    images = np.stack([base, other]).astype(np.uint8)[..., None]
    weights = np.array(WEIGHTS[: scales(side)])
    expected = by_formula(*images[..., 0].astype(float), weights / weights.sum())
    assert ms_ssim(images, np.zeros(2, np.int64), pairs=3) == pytest.approx(expected, rel=1e-3)


def test_as_many_scales_as_hold_the_window():
    assert [scales(side) for side in (16, 28, 32, 64, 128, 256, 1024)] == [1, 2, 2, 3, 4, 5, 5]
    for count, side in enumerate(SMALLEST, 1):
        assert (scales(side), scales(side + 1)) == (count, count)
        assert side >> (count - 1) >= 11
    with pytest.raises(ValueError, match="window of 11 px does not fit in images of 10 px"):
        scales(10)


@pytest.mark.parametrize("side", SMALLEST)
def test_every_size_is_measured(side):
    images = RANDOM.integers(0, 256, (2, side, side, 3)).astype(np.uint8)
    assert 0 <= ms_ssim(images, np.zeros(2, np.int64), pairs=1) < 0.5


def test_a_collapsed_class_is_alike_and_a_diverse_one_is_not():
    digits = load_digits()
    images = (digits.images[:600].repeat(4, 1).repeat(4, 2) * 15).astype(np.uint8)[..., None]
    labels = digits.target[:600].astype(np.int64)
    diverse = ms_ssim(images, labels, pairs=200)
    mixed = ms_ssim(images, labels * 0, pairs=200)
    first = images[[np.flatnonzero(labels == label)[0] for label in range(10)]]
    collapsed = ms_ssim(first[labels], labels, pairs=200)
    assert collapsed == pytest.approx(1, abs=1e-6)
    assert mixed < diverse < 0.7


def test_pairs_are_of_two_images_of_one_class_and_classes_come_evenly():
    labels = RANDOM.permutation(np.repeat([7, 3, 5, 9], [100, 10, 2, 1]))
    first, second = draw_pairs(labels, 3000, seed=0)
    assert (first != second).all()
    assert np.array_equal(labels[first], labels[second])
    classes, counts = np.unique(labels[first], return_counts=True)
    assert classes.tolist() == [3, 5, 7]
    assert counts.min() > 850
    assert len(set(first.tolist()) | set(second.tolist())) == 112


def test_every_pair_of_a_class_is_as_likely():
    first, second = draw_pairs(np.zeros(4, np.int64), 12_000, seed=0)
    pairs, counts = np.unique(np.stack([first, second]), axis=1, return_counts=True)
    assert pairs.shape[1] == 12
    assert 850 < counts.min() <= counts.max() < 1150


def test_the_seed_alone_decides():
    images = RANDOM.integers(0, 256, (20, 16, 16, 1)).astype(np.uint8)
    labels = np.arange(20) % 2
    assert ms_ssim(images, labels, 10, seed=1) == ms_ssim(images, labels, 10, seed=1)
    assert ms_ssim(images, labels, 10, seed=1) != ms_ssim(images, labels, 10, seed=2)


def test_no_pair_is_refused():
    with pytest.raises(ValueError, match="no class has two images"):
        draw_pairs(np.arange(5), 3, seed=0)
