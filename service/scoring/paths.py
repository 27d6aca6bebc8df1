"""Perceptual path lengths of a generator that is ready to be drawn from."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.config.vocabulary import OF_STYLES
from service.engine.sampler import Sampler
from service.metrics.feature_set import FeatureSet
from service.metrics.path_length import lerp, path_length, slerp
from service.metrics.perceptual import perceptual_distance
from service.random.draws import Draws


def path_lengths(
    wanted: Sequence[str],
    sampler: Sampler,
    features: FeatureSet,
    draws: Draws,
    labels: NDArray[np.int64],
) -> dict[str, float]:
    """Those of PATH_LENGTHS that are `wanted`, over as many paths as there are labels.

    Both ends of a path have its label and its noise; styles are neither mixed nor truncated. The
    generator computes in float64: steps are so short that float32 rounds some of their length away.
    """
    numbers, size = np.arange(len(labels)), sampler.shape.latents
    device = next(sampler.generator.parameters()).device
    points = _Points(sampler, draws, torch.from_numpy(labels).to(device))
    latents = (draws.latents(numbers, size), draws.latents(numbers, size, "path ends"))
    ends = tuple(torch.from_numpy(each).to(device) for each in latents)
    anywhere = torch.from_numpy(draws.uniforms(numbers, "path shares", 1)[:, 0]).to(device)

    def distance(first: Tensor, second: Tensor) -> Tensor:
        return perceptual_distance(features, first, second)

    result = {}
    with torch.no_grad():
        for score in wanted:
            shares = anywhere if score.endswith("full") else torch.zeros_like(anywhere)
            if score in OF_STYLES:
                styles = points.styles(ends[0]), points.styles(ends[1])
                value = path_length(points.paint, distance, styles, shares, lerp)
            else:
                value = path_length(points.draw, distance, (ends[0], ends[1]), shares, slerp)
            result[score] = value
    return result


class _Points:
    """Draws float64 images from points of the paths, with the labels and noise of their numbers."""

    def __init__(self, sampler: Sampler, draws: Draws, labels: Tensor):
        self.generator = copy.deepcopy(sampler.generator).double()
        self.stage, self.labels = sampler.stage, labels
        self.has_styles = sampler.shape.has_styles
        self.seeds = draws.seeds(np.arange(len(labels)), "noise")

    def styles(self, latents: Tensor) -> Tensor:
        """Styles [n, layers, z] of the latents [n, z] of all paths."""
        return self.generator.styles(latents, self.labels, self.stage)

    def draw(self, latents: Tensor, rows: slice) -> Tensor:
        """Images of latents [b, z]."""
        if not self.has_styles:
            return self.generator(latents, self.labels[rows], self.stage)
        return self.paint(self.generator.styles(latents, self.labels[rows], self.stage), rows)

    def paint(self, styles: Tensor, rows: slice) -> Tensor:
        """Images of styles [b, layers, z]."""
        noise = self.generator.draw_noise(self.seeds[rows], self.stage)
        return self.generator.synthesise(styles, self.stage, noise)
