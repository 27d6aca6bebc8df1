"""The Inception score: how clearly each image shows a class, and how evenly the set shows all."""

import itertools

import numpy as np
from numpy.typing import NDArray

SPLITS = 10


def inception_score(probabilities: NDArray[np.floating], splits: int = SPLITS) -> tuple[float, float]:
    """exp E KL(p(y|x) ‖ p(y)), mean and deviation over `splits` (Salimans et al. 2016, §4).

    `probabilities` are [n, classes], and each row sums to 1. A split is a run of n / `splits` rows,
    rounded, so shuffle images first that are sorted by class. The score lies between 1 and the number
    of classes; fewer than 50,000 images lower it. ValueError for fewer images than splits.
    """
    count = len(probabilities)
    if probabilities.ndim != 2 or count < splits:
        raise ValueError(
            f"probabilities must be [n, classes] with n at least {splits}, one image a split; found"
            f" {list(probabilities.shape)}"
        )
    bounds = [i * count // splits for i in range(splits + 1)]
    parts = [probabilities[a:b].astype(np.float64) for a, b in itertools.pairwise(bounds)]
    scores = [_score(part) for part in parts]
    return float(np.mean(scores)), float(np.std(scores))


def _score(probabilities: NDArray[np.float64]) -> float:
    """E KL as entropies: that of the mean row, minus the mean of all rows' entropies."""
    mean = probabilities.mean(0, keepdims=True)
    return float(np.exp(_entropies(mean)[0] - _entropies(probabilities).mean()))


def _entropies(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    logarithms = np.log(np.where(probabilities > 0, probabilities, 1))
    return -(probabilities * logarithms).sum(1)
