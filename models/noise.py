"""Normals that follow from seeds by integer arithmetic, drawn wherever they are needed.

They are the same on every device, need no generator's state, and let the device draw as many as it likes
without the host.
"""

import math

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
MULTIPLIERS = (0x7FEB352D, 0x846CA68B)
"""Of a mixer of 32 bits that was found by search (C. Wellons 2018, hash-prospector)."""


def normals(seeds: Tensor, count: int) -> Tensor:
    """Standard normals float32 [n, count] of seeds int64 [n] in [0, 2³²), by Box–Muller.

    Each seed has a sequence of its own: the words of a counter, mixed with two words of the seed.
    """
    half = (count + 1) // 2
    first = _mix(seeds)
    second = _mix(first ^ MULTIPLIERS[0])
    counter = torch.arange(2 * half, device=seeds.device)
    words = _mix(_mix(counter ^ first[:, None]) ^ second[:, None])
    # the middles of 2³² equal parts of (0, 1); the largest round to 1, where the radius is 0
    uniforms = words.to(torch.float32).add_(0.5).mul_(2.0**-32)
    sizes, turns = uniforms.split(half, dim=1)
    radius = sizes.log().mul_(-2.0).sqrt_()
    angle = turns * (2 * math.pi)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :count]


def _mix(words: Tensor) -> Tensor:
    """Words of 32 bits in int64, mixed one by one: each bit depends on all of the word's."""
    words = words ^ (words >> 16)
    words = (words * MULTIPLIERS[0]) & WORD
    words = words ^ (words >> 15)
    words = (words * MULTIPLIERS[1]) & WORD
    return words ^ (words >> 16)
