"""Distances between sets of features, a block of rows at a time, in float64."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.floating]

# 1,024 × 50,000 distances are 400 MB.
BLOCK_ROWS = 1024
# For equal points the formula leaves about this share of their squared norms.
_CANCELLATION = 1e-13


def squared_distances(rows: Features, columns: Features) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Blocks of |r - c|²: the rows' slice, and float64 [rows in it, len(columns)].

    ValueError if the sets' widths differ.
    """
    check_widths(rows, columns)
    # Distances do not depend on the origin, but rounding does: put it amid the points.
    origin = columns.mean(0, dtype=np.float64)
    right = columns - origin
    right_squares = np.einsum("ij,ij->i", right, right)
    for start in range(0, len(rows), BLOCK_ROWS):
        block = slice(start, min(start + BLOCK_ROWS, len(rows)))
        left = rows[block] - origin
        sums = np.einsum("ij,ij->i", left, left)[:, None] + right_squares
        squares = left @ right.T
        squares *= -2
        squares += sums
        squares[squares < _CANCELLATION * sums] = 0
        yield block, squares


def squared_radii(points: Features, neighbours: int) -> NDArray[np.float64]:
    """Squared distances [n, neighbours] from each point to its nearest other points, nearest first.

    ValueError if there are fewer other points.
    """
    if len(points) <= neighbours:
        raise ValueError(
            f"{len(points)} images have no {neighbours} neighbours; measure {neighbours + 1} or more"
        )
    result = np.empty((len(points), neighbours))
    for block, squares in squared_distances(points, points):
        each = np.arange(block.stop - block.start)
        squares[each, each + block.start] = np.inf
        result[block] = np.sort(np.partition(squares, neighbours - 1, axis=1)[:, :neighbours], axis=1)
    return result


def nearest(queries: Features, references: Features) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Distance [n] from each query to its nearest reference, and that reference's index [n].

    Distances come from the points' differences: they are 0 for equal points and no others.
    """
    if len(references) == 0:
        raise ValueError("there are no images to be near to; give one or more")
    indices = np.empty(len(queries), np.int64)
    for block, squares in squared_distances(queries, references):
        indices[block] = squares.argmin(1)
    differences = queries.astype(np.float64) - references[indices]
    return np.sqrt(np.einsum("ij,ij->i", differences, differences)), indices


def check_widths(a: Features, b: Features) -> None:
    """ValueError unless both sets are [n, d] with the same d."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(
            f"features {list(a.shape)} and {list(b.shape)} cannot be compared; measure both sets with"
            " the same network"
        )
