"""Cheap numbers that tell a training that goes well from one that falls apart.

Of generated images and of real ones each worker makes sums, which add up over the workers; what they
say is compared, so that one scale serves every data set. Weights are told by their singular values.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VIEW_PIXELS = 16
"""Images are shrunk to at most this side before their pixels are compared."""

SATURATED = 0.98
"""Of a pixel's absolute value, from which on it counts as black or white."""

TOP, START_ITERATIONS = 3, 8
"""Singular values that are followed of each weight, and steps towards them to begin with."""


@dataclass(frozen=True)
class Crowd:
    """What sums over a set of images say.

    `pixels` and `features` are mean vectors, `…_spread` root mean squares about them, `…_within` those
    about the mean of each label. `roughness` is the root mean square between neighbouring pixels,
    `saturation` a share of pixels, `above` the share of logits above the loss's boundary.
    """

    count: float
    pixels: Tensor
    pixels_spread: float
    pixels_within: float
    features_spread: float
    features_within: float
    roughness: float
    saturation: float
    logit: float
    logit_spread: float
    above: float


@torch.no_grad()
def sums(
    images: Tensor,
    features: Tensor,
    logits: Tensor,
    groups: Tensor,
    group_count: int,
    boundary: float,
) -> Tensor:
    """float64 [group_count, …] of images [n, c, r, r], D's features [n, f] and logits [n].

    `groups` [n] in 0 … group_count − 1 are labels, or all 0. The sums of two sets of images add up to
    those of both together; `crowd` reads them.
    """
    groups = groups.to(images.device)
    pixels = _view(images).flatten(1).double()
    features, logits = features.double(), logits.double()
    columns = [
        torch.ones_like(logits),
        _roughness(images),
        (images.float().abs() > SATURATED).double().mean((1, 2, 3)),
        logits,
        logits.square(),
        (logits > boundary).double(),
        pixels.square().sum(1),
        features.square().sum(1),
    ]
    rows = torch.cat([torch.stack(columns, 1), pixels, features], 1)
    members = F.one_hot(groups, group_count).T.to(rows.dtype)
    return members @ rows


def crowd(total: Tensor, pixel_count: int) -> Crowd:
    """What `sums` over all workers come to, each image having `pixel_count` values when shrunk."""
    total = total.cpu()
    counts = total[:, 0]
    whole = total.sum(0)
    count = whole[0].item()
    if not count:
        return Crowd(0.0, whole[:0], *[math.nan] * 9)
    rough, saturation, logit, squared, above = (whole[1:6] / count).tolist()
    pixels, features = total[:, 8 : 8 + pixel_count], total[:, 8 + pixel_count :]
    mean = pixels.sum(0) / count
    return Crowd(
        count,
        mean,
        *_spreads(pixels, whole[6], counts, pixel_count),
        *_spreads(features, whole[7], counts, 1),
        math.sqrt(rough) if rough >= 0 else math.nan,
        saturation,
        logit,
        math.sqrt(max(squared - logit**2, 0.0)),
        above,
    )


def view_size(resolution: int, channels: int) -> int:
    """How many values an image is compared by."""
    while resolution > VIEW_PIXELS:
        resolution //= 2
    return resolution**2 * channels


def compare(fake: Crowd, real: Crowd) -> dict[str, float]:
    """Signals, all without a unit: ratios are 1, shift and saturation 0 where fakes are like the real.

    NaN where there is nothing to compare with.
    """
    shift = (fake.pixels - real.pixels).square().mean().sqrt().item() if real.count else math.nan
    return {
        "variety_pixels": _ratio(fake.pixels_spread, real.pixels_spread),
        "variety_features": _ratio(fake.features_spread, real.features_spread),
        "within_pixels": _ratio(fake.pixels_within, real.pixels_within),
        "within_features": _ratio(fake.features_within, real.features_within),
        "roughness": _ratio(fake.roughness, real.roughness),
        "shift": _ratio(shift, real.pixels_spread),
        "saturation": fake.saturation - real.saturation,
    }


def _view(images: Tensor) -> Tensor:
    images = images.float()
    while images.shape[2] > VIEW_PIXELS:
        images = F.avg_pool2d(images, 2)
    return images


def _roughness(images: Tensor) -> Tensor:
    """The mean square between neighbours, for each image."""
    wide = images.double()
    down = (wide[:, :, 1:] - wide[:, :, :-1]).square().mean((1, 2, 3))
    across = (wide[..., 1:] - wide[..., :-1]).square().mean((1, 2, 3))
    return (down + across) / 2


def _spreads(vectors: Tensor, squares: Tensor, counts: Tensor, size: int) -> tuple[float, float]:
    """Root mean squares, for each of `size` values, about the mean of all and about their group's."""
    count, groups = counts.sum(), (counts > 0).sum()
    about_mean = squares - vectors.sum(0).square().sum() / count
    about_group = squares - (vectors.square().sum(1) / counts.clamp_min(1)).sum()
    free = torch.stack([count - 1, count - groups])
    # of one image, or of one in each group, there is no spread to speak of
    spreads = torch.stack([about_mean, about_group]).clamp_min(0) / torch.where(free > 0, free, math.nan)
    over_all, within = (spreads / size).sqrt().tolist()
    return over_all, within


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


# Singular values ----------------------------------------------------------------------------------


class Spectra:
    """Follows the top singular values of raw weights by a block iteration that is kept warm.

    (Brock et al. 2019, §4.1, follow them by power iteration too.) The vectors are part of what
    resumes: `state_dict` and `load_state_dict` are as a module's.
    """

    def __init__(self, networks: dict[str, nn.Module]):
        self._networks = networks
        self._vectors = {name: _start(weight) for name, weight in self._weights()}
        self.values(START_ITERATIONS)

    def state_dict(self) -> dict[str, Tensor]:
        """The vectors [in, at most 3] by weight."""
        return self._vectors

    def load_state_dict(self, vectors: dict[str, Tensor]) -> None:
        """Become those; RuntimeError where they are of other weights."""
        if {k: v.shape for k, v in vectors.items()} != {k: v.shape for k, v in self._vectors.items()}:
            raise RuntimeError("vectors of other weights than these networks have")
        for name, vector in vectors.items():
            self._vectors[name].copy_(vector)

    @torch.no_grad()
    def values(self, iterations: int = 1) -> dict[str, list[float]]:
        """The top singular values of each weight as [out, in · kh · kw], the largest first.

        Estimates from below, which `iterations` improve by so many steps; 0 of weights not finite.
        """
        found = []
        for name, weight in self._weights():
            matrix, vectors = _matrix(weight), self._vectors[name]
            for _ in range(iterations):
                # NaN and Inf, which QR refuses, would stay in the vectors for good
                vectors.copy_(torch.linalg.qr((matrix.T @ (matrix @ vectors)).nan_to_num(0, 0, 0)).Q)
            values = torch.linalg.svdvals((matrix @ vectors).nan_to_num(0, 0, 0))
            found.append(F.pad(values, (0, TOP - len(values))))
        table = torch.stack(found).tolist()
        return {name: row for (name, _), row in zip(self._weights(), table, strict=True)}

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        for network, module in self._networks.items():
            for name, parameter in module.named_parameters():
                if parameter.ndim > 1 and min(_matrix(parameter).shape) > 1:
                    yield f"{network}/{name}", parameter.detach()


def largest(values: dict[str, list[float]]) -> dict[str, float]:
    """By network, as `spectrum_generator`, the largest of the singular values that `Spectra` found."""
    found: dict[str, float] = {}
    for name, top in values.items():
        signal = f"spectrum_{name.partition('/')[0]}"
        found[signal] = max(found.get(signal, 0.0), *top)
    return found


def _start(weight: Tensor) -> Tensor:
    """Orthonormal vectors [in, at most 3], the same for the same shape."""
    rows, columns = _matrix(weight).shape
    draw = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(columns, min(TOP, rows, columns), generator=draw)).Q.to(weight)


def _matrix(weight: Tensor) -> Tensor:
    """[out, in · kh · kw]: a view of a channels-last weight."""
    return weight.permute(0, *range(2, weight.ndim), 1).flatten(1)
