"""The kernel distance between two sets of features; with the standard Inception's it is KID."""

import math

import numpy as np
from numpy.typing import NDArray

from service.metrics.distances import Features, check_widths
from service.random import philox

SUBSETS = 100
SUBSET_IMAGES = 1000


def kid(
    real: Features,
    generated: Features,
    seed: int = 0,
    subsets: int = SUBSETS,
    subset_images: int = SUBSET_IMAGES,
) -> tuple[float, float]:
    """Mean and deviation of the unbiased MMD² over subsets drawn by `seed` (Bińkowski et al. 2018, §4).

    The kernel is (x·y / d + 1)³. A subset is no larger than the smaller set; if it takes both sets
    whole, there is one measurement, whose deviation is NaN. For sets of one distribution the mean is
    near 0, above or below, however few the images. ValueError if the widths differ or a side has fewer
    than two.
    """
    check_widths(real, generated)
    size = min(subset_images, len(real), len(generated))
    if size == len(real) == len(generated):
        subsets = 1
    values = [
        squared_mmd(_subset(real, "real", seed, i, size), _subset(generated, "generated", seed, i, size))
        for i in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values)) if len(values) > 1 else math.nan


def squared_mmd(a: Features, b: Features) -> float:
    """Unbiased estimate of MMD² between [n, d] and [m, d], each of two or more (Gretton et al. 2012)."""
    for side in (a, b):
        if len(side) < 2:
            raise ValueError(f"a kernel distance needs at least 2 images, found {len(side)}")
    x, y = a.astype(np.float64), b.astype(np.float64)
    return _mean_of_others(x) + _mean_of_others(y) - 2 * float(_kernel(x, y).mean())


def _mean_of_others(features: NDArray[np.float64]) -> float:
    """The kernel's mean over pairs of different images."""
    values, count = _kernel(features, features), len(features)
    return float(values.sum() - np.trace(values)) / (count * (count - 1))


def _kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    base = a @ b.T
    base /= a.shape[1]
    base += 1
    return base * base * base


def _subset(features: Features, side: str, seed: int, number: int, size: int) -> Features:
    if size == len(features):
        return features
    return features[philox.permutation(philox.key("kid", side, seed, number), len(features))[:size]]
