"""Perceptual path length: how images change along paths between latents (Karras et al. 2019, §4.1)."""

from collections.abc import Callable

import torch
from torch import Tensor

EPSILON = 1e-4
"""The length of a step along a path whose whole length is 1."""
TRIM = 0.01
"""The share of the lowest distances that is dropped, and of the highest."""
_PARALLEL = 1e-9
BATCH = 16
"""Steps that are drawn at once; it changes only rounding."""

Interpolate = Callable[[Tensor, Tensor, Tensor], Tensor]


def path_length(
    draw: Callable[[Tensor, slice], Tensor],
    distance: Callable[[Tensor, Tensor], Tensor],
    ends: tuple[Tensor, Tensor],
    shares: Tensor,
    interpolate: Interpolate,
) -> float:
    """The mean of the distances over a step from `shares` to `shares` + ε of each path, divided by ε².

    `ends` are the paths' two ends, each float64 [n, …]; `shares` float64 [n] in [0, 1]. `draw` gives the
    images of such points and of the numbers of their paths, whose noise and labels both ends share;
    `distance` compares images [b, …] squared, float64 [b]. The lowest and the highest 1 % are dropped.
    """
    distances = []
    for i in range(0, len(shares), BATCH):
        rows = slice(i, i + BATCH)
        first, last = (end[rows] for end in ends)
        images = [draw(interpolate(first, last, shares[rows] + step), rows) for step in (0.0, EPSILON)]
        distances.append(distance(*images) / EPSILON**2)
    return trimmed_mean(torch.cat(distances))


def trimmed_mean(values: Tensor) -> float:
    """The mean of [n] without the lowest and the highest 1 %, rounded down to whole values."""
    dropped = int(len(values) * TRIM)
    return float(values.sort().values[dropped : len(values) - dropped].mean())


def slerp(start: Tensor, end: Tensor, share: Tensor) -> Tensor:
    """Points [n, d] at `share` [n] of the great arcs between two points [n, d] each (Shoemake 1985).

    Their directions turn evenly, and their lengths change evenly: normals stay as long as normals are,
    and families that normalise latents see the directions alone, as in the paper.
    """
    share = share[:, None]
    lengths = [torch.linalg.vector_norm(x, dim=1, keepdim=True) for x in (start, end)]
    first, last = start / lengths[0], end / lengths[1]
    angle = torch.acos((first * last).sum(1, keepdim=True).clamp(-1, 1))
    arc = (torch.sin((1 - share) * angle) * first + torch.sin(share * angle) * last) / angle.sin()
    direction = torch.where(angle.sin() < _PARALLEL, torch.lerp(first, last, share), arc)
    return direction * torch.lerp(lengths[0], lengths[1], share)


def lerp(start: Tensor, end: Tensor, share: Tensor) -> Tensor:
    """Points [n, …] at `share` [n] of the straight lines between two points [n, …] each."""
    return torch.lerp(start, end, share.reshape(-1, *[1] * (start.ndim - 1)))
