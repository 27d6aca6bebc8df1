"""Fidelity and diversity of sets of features, apart: precision and recall, density and coverage."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.metrics.distances import Features, squared_distances, squared_radii

# The papers' own: Kynkäänniemi et al. 2019, §3; Naeem et al. 2020, §3.
PRECISION_NEIGHBOURS = 3
DENSITY_NEIGHBOURS = 5


@dataclass(frozen=True)
class Prdc:
    """Precision, recall and coverage are shares in 0 … 1; density may exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(
    real: Features,
    generated: Features,
    precision_neighbours: int = PRECISION_NEIGHBOURS,
    density_neighbours: int = DENSITY_NEIGHBOURS,
) -> Prdc:
    """All four of real [n, d] and generated [m, d], from one pass over the distances.

    A set's manifold is the union of balls about its points; each reaches to the k-th nearest other
    point. Precision is the share of generated images in the real manifold, recall the share of real
    images in the generated one (Kynkäänniemi et al. 2019). Density is the mean number of real balls
    around a generated image, over k. Coverage is the share of real balls that hold a generated image
    (Naeem et al. 2020). All depend on n and m: compare at equal counts. ValueError if a set has no
    more than k images, or the widths differ.
    """
    most = max(precision_neighbours, density_neighbours)
    real_radii = squared_radii(real, most)
    generated_radii = squared_radii(generated, precision_neighbours)[:, -1]
    precision_radii = real_radii[:, precision_neighbours - 1]
    density_radii = real_radii[:, density_neighbours - 1]
    precise, balls = 0, 0
    recalled: NDArray[np.bool_] = np.zeros(len(real), bool)
    covered: NDArray[np.bool_] = np.zeros(len(real), bool)
    for block, squares in squared_distances(generated, real):
        precise += int((squares <= precision_radii).any(1).sum())
        inside = squares <= density_radii
        balls += int(inside.sum())
        covered |= inside.any(0)
        recalled |= (squares <= generated_radii[block, None]).any(0)
    return Prdc(
        precise / len(generated),
        float(recalled.mean()),
        balls / (density_neighbours * len(generated)),
        float(covered.mean()),
    )
