"""The random draws of the training: indexed by global sample numbers, so any worker can make any."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service import philox

_WORD_RANGE = 2.0**32


@dataclass(frozen=True)
class Draws:
    """Latents and labels of one role, such as "discriminator" or "generator", in one attempt."""

    seed: int
    role: str
    attempt: int

    def latents(self, numbers: NDArray[np.int64], size: int) -> NDArray[np.float64]:
        """Standard normals [n, size], by Box–Muller: two words give two normals."""
        words = philox.words(self._key("latents"), numbers, size + size % 2)
        uniforms = (words.astype(np.float64) + 0.5) / _WORD_RANGE
        radius = np.sqrt(-2.0 * np.log(uniforms[:, 0::2]))
        angle = 2.0 * np.pi * uniforms[:, 1::2]
        normals = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=2)
        return normals.reshape(len(numbers), -1)[:, :size]

    def labels(self, numbers: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
        """Labels [n], evenly in 0 … classes − 1."""
        return philox.integers(philox.words(self._key("labels"), numbers, 1), classes)[:, 0]

    def _key(self, kind: str) -> tuple[int, int]:
        return philox.key(kind, self.role, self.seed, self.attempt)
