"""The Fréchet distance between two sets of features, each described by its mean and covariance."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Moments:
    """The statistics of a set of features that the distance needs.

    `count` is the number of samples, `mean` float64 [d], `covariance` float64 [d, d], divided by
    count - 1; it is zero for fewer than two samples.
    """

    count: int
    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]


def moments(features: NDArray[np.floating]) -> Moments:
    """Moments of features [n, d], n at least 1, computed in float64 about their own mean."""
    if features.ndim != 2 or len(features) == 0:
        raise ValueError(f"features must be [n, d] with n at least 1, found {list(features.shape)}")
    total = MomentsSum(features.mean(0, dtype=np.float64))
    total.add(features)
    return total.moments()


class MomentsSum:
    """Moments of features that come in parts, without keeping them.

    Sums are taken about `origin` [d], a point amid the features, which keeps rounding small.
    """

    def __init__(self, origin: NDArray[np.floating]):
        self._origin = origin.astype(np.float64)
        self._count, self._sum = 0, np.zeros_like(self._origin)
        self._products = np.zeros((len(origin), len(origin)))

    def add(self, features: NDArray[np.floating]) -> None:
        """Count features [n, d]."""
        shifted = features - self._origin
        self._count += len(shifted)
        self._sum += shifted.sum(0)
        self._products += shifted.T @ shifted

    def moments(self) -> Moments:
        """The moments of all features that were added, one or more."""
        shift = self._sum / self._count
        scatter = self._products - self._count * np.outer(shift, shift)
        return Moments(self._count, self._origin + shift, scatter / max(self._count - 1, 1))


def frechet_distance(a: Moments, b: Moments) -> float:
    """|m_a - m_b|² + tr(C_a + C_b - 2 (C_a C_b)^½), at least 0 (Dowson and Landau 1982).

    Also correct for covariances without full rank, as of fewer samples than features. ValueError if
    the widths differ or a side has fewer than two samples.
    """
    _check_widths(a, b)
    for side in (a, b):
        if side.count < 2:
            raise ValueError(
                f"a covariance needs at least 2 images, found {side.count}; measure more images"
            )
    # C_a C_b has the eigenvalues of root_a C_b root_a. They are real and, up to rounding, at least 0
    # because that matrix is symmetric; a square root of the product itself could turn complex.
    root = _square_root(a.covariance)
    product = root @ b.covariance @ root
    eigenvalues = np.linalg.eigvalsh((product + product.T) / 2).clip(min=0)
    shift = a.mean - b.mean
    spread = np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.sqrt(eigenvalues).sum()
    return max(float(shift @ shift + spread), 0.0)


def _check_widths(a: Moments, b: Moments) -> None:
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"features of {len(a.mean)} and of {len(b.mean)} numbers an image cannot be compared;"
            " measure both sets with the same network"
        )


def _square_root(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """The symmetric root of a symmetric matrix; eigenvalues below 0 are rounding and count as 0."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
