"""The Inception score: how surely each image is of a class, and how evenly the set is of all."""

import itertools

import numpy as np
from numpy.typing import NDArray

SPLITS = 10


def inception_score(probabilities: NDArray[np.floating], splits: int = SPLITS) -> tuple[float, float]:
    """exp E KL(p(y|x) ‖ p(y)), mean and deviation over `splits` (Salimans et al. 2016, §4).

    `probabilities` are [n, classes], rows' sums 1, cut into runs of equal length but for one: so images
    that come class by class want to be shuffled first. Between 1 and the number of classes. Fewer than
    50,000 images give less. ValueError for fewer images than splits.
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
    """As entropies: E KL is that of the mean less the mean of all."""
    mean = probabilities.mean(0, keepdims=True)
    return float(np.exp(_entropies(mean)[0] - _entropies(probabilities).mean()))


def _entropies(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    logarithms = np.log(np.where(probabilities > 0, probabilities, 1))
    return -(probabilities * logarithms).sum(1)
