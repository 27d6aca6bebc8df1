"""Does a generator copy its training images? Compares how near generated and held-out images are."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.metrics.distances import Features, nearest

# With fewer, the statistic is not normally distributed (Meehan et al. 2020, §4).
FEWEST_IMAGES = 20
COPY_QUANTILE = 0.01


@dataclass(frozen=True)
class Memorisation:
    """Whether generated images lie nearer to training images than held-out ones do.

    `nearer` is how often a generated image is nearer to its nearest training image than a held-out
    image is to its own; ties count half. Fresh draws of the data's distribution give 0.5. `z` is the
    data-copying statistic of Meehan et al. 2020 (one cell), in standard deviations: below -3 it means
    copies, far above 3 images unlike any. `p_value` is the chance of such a `z` or lower without
    copying. `copies` is the share of generated images that are nearer than all but the nearest 1% of
    held-out ones, about 0.01 for fresh draws. It shows few copies among many poor images; `z` does not.

    `distances` [n] and `indices` [n] belong to each generated image's nearest training image.
    """

    z: float
    p_value: float
    nearer: float
    copies: float
    distances: NDArray[np.float64]
    indices: NDArray[np.int64]


def memorisation(generated: Features, held_out: Features, training: Features) -> Memorisation:
    """Test generated [n, d] against held-out [m, d] for nearness to training images [t, d].

    The training images are the whole training set or a sample of it; a sample finds proportionally
    fewer copies. Held-out images that are also in the training set hide copying. ValueError for fewer
    than 20 generated or held-out images, and if widths differ.
    """
    for what, side in (("generated", generated), ("held-out", held_out)):
        if len(side) < FEWEST_IMAGES:
            raise ValueError(
                f"memorisation needs {FEWEST_IMAGES} {what} images or more, found {len(side)}"
            )
    distances, indices = nearest(generated, training)
    expected = np.sort(nearest(held_out, training)[0])
    n, m = len(distances), len(expected)
    below, up_to = (np.searchsorted(expected, distances, side) for side in ("left", "right"))
    farther = float((below + up_to).sum()) / 2  # Mann and Whitney's U of the generated images
    z = (farther - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12)
    near = expected[math.ceil(COPY_QUANTILE * m) - 1]
    return Memorisation(
        z,
        math.erfc(-z / math.sqrt(2)) / 2,
        1 - farther / (n * m),
        float((distances < near).mean()),
        distances,
        indices,
    )
