"""How different two images look: distances of feature maps at several depths of a network."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from service.metrics.feature_set import FeatureSet

# A place where nothing is active has no direction.
_EPS = 1e-10


def perceptual_distance(features: FeatureSet, first: Tensor, second: Tensor) -> Tensor:
    """Squared distances float64 [n] of images [n, c, h, w], nominally in [-1, 1], c 1 or 3.

    At each of the network's depths every place's features are scaled to length 1, their squared
    differences summed over the channels and averaged over the places; the depths are summed (Zhang et
    al. 2018, eq. 1, with all weights 1). A network without depths compares its pooled features. Images
    are neither rounded nor clamped, so that small steps count; the network is float32.
    """
    total = torch.zeros(len(first), dtype=torch.float64, device=first.device)
    for one, other in zip(_maps(features, first), _maps(features, second), strict=True):
        difference = _directions(one) - _directions(other)
        total += difference.square().sum(1).flatten(1).mean(1)
    return total


def _directions(maps: Tensor) -> Tensor:
    """Maps [n, c, …] in float64 with channels of length 1 at each place; pooled features get a place."""
    wide = maps.double()
    wide = wide[:, :, None] if wide.ndim == 2 else wide
    return wide / (torch.linalg.vector_norm(wide, dim=1, keepdim=True) + _EPS)


def _maps(features: FeatureSet, images: Tensor) -> list[Tensor]:
    """The feature maps of the depths."""
    pixels = ((images + 1) * 127.5).float().expand(-1, 3, -1, -1)
    with _outputs(features.network, features.depths) as outputs:
        pooled = features.network(pixels)
    return outputs or [pooled]


@contextmanager
def _outputs(network: nn.Module, names: tuple[str, ...]) -> Iterator[list[Tensor]]:
    """A list that fills with what these modules put out."""
    outputs: list[Tensor] = []

    def keep(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        outputs.append(output)

    handles = [network.get_submodule(name).register_forward_hook(keep) for name in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
