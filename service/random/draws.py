"""Random draws of the training, indexed by global sample numbers: any worker can make any draw."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.random import philox

_WORD_RANGE = 2.0**32


@dataclass(frozen=True)
class Draws:
    """Latents and labels of one role, such as "discriminator" or "generator", in one attempt."""

    seed: int
    role: str
    attempt: int

    def latents(
        self, numbers: NDArray[np.int64], size: int, kind: str = "latents"
    ) -> NDArray[np.float64]:
        """Standard normals [n, size], by Box–Muller: two words give two normals."""
        uniforms = self.uniforms(numbers, kind, size + size % 2)
        radius = np.sqrt(-2.0 * np.log(uniforms[:, 0::2]))
        angle = 2.0 * np.pi * uniforms[:, 1::2]
        normals = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=2)
        return normals.reshape(len(numbers), -1)[:, :size]

    def truncated(
        self, numbers: NDArray[np.int64], size: int, truncation: float | None
    ) -> NDArray[np.float64]:
        """Normals [n, size] within ± `truncation`, as if those outside were drawn again.

        This inverts the distribution function, so that one number's latents shrink smoothly with the
        threshold (Brock et al. 2019, §3.1). None does not truncate.
        """
        import torch  # drivers, which check the order of the data, start without it

        uniforms = torch.from_numpy(self.uniforms(numbers, "truncated", size))
        if truncation is not None:
            low = torch.special.ndtr(torch.tensor(-truncation, dtype=torch.float64))
            uniforms = low + uniforms * (1 - 2 * low)
        return torch.special.ndtri(uniforms).numpy()

    def labels(
        self,
        numbers: NDArray[np.int64],
        classes: int | None,
        counts: NDArray[np.int64] | None = None,
    ) -> NDArray[np.int64]:
        """Labels [n] in 0 … classes − 1, uniform, or in proportion to `counts`, one for each class.

        All are 0 if there are no classes.
        """
        if counts is None:
            counts = np.ones(classes or 1, np.int64)
        ends = np.cumsum(counts)
        drawn = philox.integers(philox.words(self._key("labels"), numbers, 1), int(ends[-1]))[:, 0]
        return np.searchsorted(ends, drawn, side="right")

    def uniforms(self, numbers: NDArray[np.int64], kind: str, count: int) -> NDArray[np.float64]:
        """Uniform numbers [n, count] inside (0, 1), independent for each `kind` of use."""
        words = philox.words(self._key(kind), numbers, count)
        return (words.astype(np.float64) + 0.5) / _WORD_RANGE

    def seeds(self, numbers: NDArray[np.int64], kind: str) -> list[int]:
        """An integer in [0, 2³²) for each number, to seed torch's generators with."""
        return philox.words(self._key(kind), numbers, 1)[:, 0].tolist()

    def _key(self, kind: str) -> tuple[int, int]:
        return philox.key(kind, self.role, self.seed, self.attempt)
