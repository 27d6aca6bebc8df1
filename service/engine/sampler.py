"""Images from a generator: it is prepared once, then drawn from with the controls of its family.

Sampling does not change the training: the generator is copied, and latents come from draws of their
own.
"""

import contextlib
import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import Shape, Stage
from models.growth import GrowingGenerator
from models.layers import has_batch_norm, spectral_iterate, standing_statistics
from service.random.draws import Draws

SPECTRAL_ITERATIONS = 5
STANDING_BATCHES = 16
BATCH = 64


@dataclass(frozen=True)
class Truncation:
    """How far out images are drawn: latents within ± `threshold`, styles at `psi` as in `truncate`.

    The defaults truncate nothing.
    """

    threshold: float | None = None
    psi: float = 1.0


class Sampler:
    """Draws from a copy of `generator` at `stage`.

    Singular vectors are brought up to date. If there is batch norm, `standing_batches` batches of 64
    measure its statistics; their latents are drawn from `seed` and within `truncation`.
    """

    def __init__(
        self,
        generator: GrowingGenerator,
        shape: Shape,
        stage: Stage,
        seed: int,
        truncation: float | None = None,
        standing_batches: int = STANDING_BATCHES,
        autocast: AbstractContextManager | None = None,
    ):
        self.generator = copy.deepcopy(generator).requires_grad_(False).eval()
        self.shape, self.stage = shape, stage
        self.autocast = autocast or contextlib.nullcontext()
        spectral_iterate(self.generator, SPECTRAL_ITERATIONS)
        if has_batch_norm(self.generator):
            draws = Draws(seed, "standing", 0)
            with standing_statistics(self.generator), torch.no_grad(), self.autocast:
                for i in range(standing_batches):
                    numbers = np.arange(i * BATCH, (i + 1) * BATCH)
                    latents = draws.truncated(numbers, shape.latents, truncation)
                    labels = draws.labels(numbers, shape.classes)
                    self.generator(*self._tensors(latents, labels), stage)

    def draw(
        self,
        latents: NDArray[np.float64],
        labels: NDArray[np.int64],
        psi: float | Sequence[float] = 1.0,
        cutoff: int | None = None,
        noise_seeds: Sequence[int] | None = None,
    ) -> NDArray[np.uint8]:
        """uint8 [n, r, r, c] of latents [n, z] and labels [n].

        The other arguments steer families with styles; other families ignore them. `psi` and `cutoff`
        are as in `truncate`. `noise_seeds` has one for each image; None draws without noise.
        """
        if not self.shape.has_styles:
            return self._in_batches(len(latents), lambda rows: self._plain(latents[rows], labels[rows]))
        return self.paint(self.styles(latents, labels, psi, cutoff), noise_seeds)

    def styles(
        self,
        latents: NDArray[np.float64],
        labels: NDArray[np.int64],
        psi: float | Sequence[float] = 1.0,
        cutoff: int | None = None,
    ) -> Tensor:
        """Styles [n, layers, z], truncated; TypeError for a family without styles."""
        with torch.no_grad():
            styles = self.generator.styles(*self._tensors(latents, labels), self.stage)
            return self.generator.truncate(styles, psi, cutoff)

    def paint(self, styles: Tensor, noise_seeds: Sequence[int] | None = None) -> NDArray[np.uint8]:
        """uint8 [n, r, r, c] of styles [n, layers, z]; TypeError for a family without styles."""

        def synthesise(rows: slice) -> Tensor:
            noise = self.generator.draw_noise(noise_seeds[rows], self.stage) if noise_seeds else None
            return self.generator.synthesise(styles[rows], self.stage, noise)

        return self._in_batches(len(styles), synthesise)

    def _plain(self, latents: NDArray[np.float64], labels: NDArray[np.int64]) -> Tensor:
        return self.generator(*self._tensors(latents, labels), self.stage)

    def _in_batches(self, count: int, draw: Callable[[slice], Tensor]) -> NDArray[np.uint8]:
        with torch.no_grad(), self.autocast:
            parts = [draw(slice(i, i + BATCH)) for i in range(0, count, BATCH)]
        return to_uint8(torch.cat(parts))

    def _tensors(self, latents: NDArray[np.float64], labels: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        parameter = next(self.generator.parameters())
        return torch.from_numpy(latents).to(parameter), torch.from_numpy(labels).to(parameter.device)


def to_uint8(images: Tensor) -> NDArray[np.uint8]:
    """Images [n, c, h, w], nominally in [-1, 1], clamped, as uint8 [n, h, w, c]."""
    pixels = (images.float().clamp(-1, 1) + 1) * 127.5
    return pixels.round().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()
