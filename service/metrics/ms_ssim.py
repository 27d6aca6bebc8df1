"""How alike images of a class are: MS-SSIM of pairs, which nears 1 when a generator collapses."""

import numpy as np
import torch
from numpy.typing import NDArray

from service.random import philox

PAIRS = 1000
# One per scale, finest first (Wang et al. 2003, §3.2).
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
# Sides that 1, 2, … 5 scales need so that the window fits in the last one and torchmetrics accepts it.
SMALLEST = (11, 22, 44, 99, 176)
_BATCH = 64


def scales(resolution: int) -> int:
    """How many scales images of `resolution` px a side have: all that hold the 11 px window.

    5 from 176 px on, 4 from 99, 3 from 44, 2 from 22, 1 from 11 (then it is SSIM). ValueError below.
    """
    if resolution < SMALLEST[0]:
        raise ValueError(f"a window of {SMALLEST[0]} px does not fit in images of {resolution} px")
    return sum(resolution >= side for side in SMALLEST)


def ms_ssim(
    images: NDArray[np.uint8], labels: NDArray[np.int64], pairs: int = PAIRS, seed: int = 0
) -> float:
    """Mean MS-SSIM of `pairs` of images [n, h, w, c], each of one class (Odena et al. 2017, §4.2).

    A pair's class is drawn evenly among those with two images or more, then the pair. Equal images
    give 1. Below 176 px only the first `scales` of the five weights count, scaled to sum to 1: compare
    at one resolution, also with real images. ValueError if no class has two images.
    """
    first, second = draw_pairs(labels, pairs, seed)
    # imported here: it takes more than a second
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    weights = np.array(WEIGHTS[: scales(min(images.shape[1:3]))])
    total = 0.0
    for start in range(0, pairs, _BATCH):
        rows = slice(start, start + _BATCH)
        a, b = (torch.tensor(images[side[rows]]).permute(0, 3, 1, 2).float() for side in (first, second))
        values = multiscale_structural_similarity_index_measure(
            a, b, data_range=255.0, betas=tuple((weights / weights.sum()).tolist()), reduction="none"
        )
        total += float(values.double().sum())
    return total / pairs


def draw_pairs(
    labels: NDArray[np.int64], pairs: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices [pairs] of the first and of the second images: different images of one class."""
    order = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    starts, counts = starts[counts > 1], counts[counts > 1]
    if not len(counts):
        raise ValueError("no class has two images to compare; measure more images")
    words = philox.words(philox.key("pairs", seed), np.arange(pairs), 3)
    chosen = philox.integers(words[:, 0], len(counts))
    count = counts[chosen]
    first = _below(words[:, 1], count)
    second = (first + 1 + _below(words[:, 2], count - 1)) % count
    return order[starts[chosen] + first], order[starts[chosen] + second]


def _below(words: NDArray[np.uint32], bounds: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each word as an integer below its own bound."""
    return (words.astype(np.uint64) * bounds.astype(np.uint64) >> np.uint64(32)).astype(np.int64)
