"""Cheap numbers that tell a healthy training from one that falls apart.

Each worker sums over generated images and over real ones, and the sums add up over the workers. Signals
compare the two, so that one scale serves every data set. Weights are summarised by their largest
singular values.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VIEW_PIXELS = 16
"""Images are shrunk to at most this side before their pixels are compared."""

SATURATED = 0.98
"""A pixel whose absolute value exceeds this counts as black or white."""

COLUMNS = (
    "count",
    "roughness",
    "saturation",
    "logit",
    "logit_squared",
    "above",
    "pixels_squared",
    "features_squared",
)
"""What is summed over images, besides the pixels and the features themselves."""

TOP, START_ITERATIONS = 3, 8
"""Singular values to track of each weight, and iterations at the start."""

_JITTER = 1e-14
"""So much is added to the squared lengths of columns, which are 1."""


@dataclass(frozen=True)
class Crowd:
    """Statistics of a set of images.

    `pixels` is the mean vector. `…_spread` are root mean squares about the mean, `…_within` those about
    the mean of each label. `roughness` is the root mean squared difference of neighbouring pixels,
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
    """Sums float64 [group_count, …] of images [n, c, r, r], D's features [n, f] and logits [n].

    `groups` [n] in 0 … group_count − 1 are labels, or all 0. The sums of two sets of images add up to
    those of both together; `crowd` reads them.
    """
    groups = groups.to(images.device)
    pixels = _view(images).flatten(1).double()
    features, logits = features.double(), logits.double()
    columns = {
        "count": torch.ones_like(logits),
        "roughness": _roughness(images),
        "saturation": (images.float().abs() > SATURATED).double().mean((1, 2, 3)),
        "logit": logits,
        "logit_squared": logits.square(),
        "above": (logits > boundary).double(),
        "pixels_squared": pixels.square().sum(1),
        "features_squared": features.square().sum(1),
    }
    rows = torch.cat([torch.stack([columns[name] for name in COLUMNS], 1), pixels, features], 1)
    members = F.one_hot(groups, group_count).T.to(rows.dtype)
    return members @ rows


def crowd(total: Tensor, pixel_count: int) -> Crowd:
    """The statistics from `sums` over all workers; a shrunk image has `pixel_count` values."""
    total = total.cpu()
    by_group = dict(zip(COLUMNS, total[:, : len(COLUMNS)].unbind(1), strict=True))
    whole = {name: column.sum().item() for name, column in by_group.items()}
    count = whole["count"]
    if not count:
        return _nobody(pixel_count)
    mean = {name: value / count for name, value in whole.items()}
    pixels, features = total[:, len(COLUMNS) :].tensor_split([pixel_count], 1)
    pixels_spread, pixels_within = _spreads(
        pixels, whole["pixels_squared"], by_group["count"], pixel_count
    )
    features_spread, features_within = _spreads(
        features, whole["features_squared"], by_group["count"], 1
    )
    return Crowd(
        count=count,
        pixels=pixels.sum(0) / count,
        pixels_spread=pixels_spread,
        pixels_within=pixels_within,
        features_spread=features_spread,
        features_within=features_within,
        roughness=math.sqrt(mean["roughness"]) if mean["roughness"] >= 0 else math.nan,
        saturation=mean["saturation"],
        logit=mean["logit"],
        logit_spread=math.sqrt(max(mean["logit_squared"] - mean["logit"] ** 2, 0.0)),
        above=mean["above"],
    )


def _nobody(pixel_count: int) -> Crowd:
    """The crowd of no images: every statistic is unknown."""
    unknown: dict[str, Any] = {field.name: math.nan for field in dataclasses.fields(Crowd)}
    return Crowd(**unknown | {"count": 0.0, "pixels": torch.full((pixel_count,), math.nan)})


def view_size(resolution: int, channels: int) -> int:
    """How many pixel values of an image are compared."""
    while resolution > VIEW_PIXELS:
        resolution //= 2
    return resolution**2 * channels


def compare(fake: Crowd, real: Crowd) -> dict[str, float]:
    """Signals without units. If fakes match real images, ratios are 1, shift and saturation 0.

    NaN if there is nothing to compare with.
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
    """The mean squared difference of neighbouring pixels, for each image."""
    wide = images.double()
    down = (wide[:, :, 1:] - wide[:, :, :-1]).square().mean((1, 2, 3))
    across = (wide[..., 1:] - wide[..., :-1]).square().mean((1, 2, 3))
    return (down + across) / 2


def _spreads(vectors: Tensor, squares: float, counts: Tensor, size: int) -> tuple[float, float]:
    """Root mean squares over `size` values, about the mean of all and about each group's mean."""
    count, groups = counts.sum(), (counts > 0).sum()
    about_mean = squares - vectors.sum(0).square().sum() / count
    about_group = squares - (vectors.square().sum(1) / counts.clamp_min(1)).sum()
    free = torch.stack([count - 1, count - groups])
    # one image, or one in each group, has no spread
    spreads = torch.stack([about_mean, about_group]).clamp_min(0) / torch.where(free > 0, free, math.nan)
    over_all, within = (spreads / size).sqrt().tolist()
    return over_all, within


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


# Singular values ----------------------------------------------------------------------------------


class Spectra:
    """Tracks the top singular values of raw weights by a block iteration that is kept warm.

    (Brock et al. 2019, §4.1, track them by power iteration too.) The vectors resume with the training:
    `state_dict` and `load_state_dict` are as a module's.
    """

    def __init__(self, networks: dict[str, nn.Module]):
        self._networks = networks
        self._vectors = {name: _start(weight) for name, weight in self._weights()}
        self.values(START_ITERATIONS)

    def state_dict(self) -> dict[str, Tensor]:
        """The vectors [in, at most 3] by weight."""
        return self._vectors

    def load_state_dict(self, vectors: dict[str, Tensor]) -> None:
        """Take over these vectors; RuntimeError if they belong to other weights."""
        if {k: v.shape for k, v in vectors.items()} != {k: v.shape for k, v in self._vectors.items()}:
            raise RuntimeError("the vectors belong to other weights than these networks'")
        for name, vector in vectors.items():
            self._vectors[name].copy_(vector)

    @torch.no_grad()
    def values(self, iterations: int = 1) -> dict[str, list[float]]:
        """The top singular values of each weight as [out, in · kh · kw], the largest first.

        They are estimates from below; `iterations` improve them. Weights that are not finite give 0.
        """
        matrices = {name: _matrix(weight) for name, weight in self._weights()}
        if not matrices:
            return {}
        for _ in range(iterations):
            moved = [
                _finite(matrix.T @ (matrix @ self._vectors[name])) for name, matrix in matrices.items()
            ]
            former = [self._vectors[name] for name in matrices]
            for vectors, better in zip(former, _orthonormal(moved, former), strict=True):
                vectors.copy_(better)
        shown = [_finite(matrix @ self._vectors[name]) for name, matrix in matrices.items()]
        squares = torch.linalg.eigvalsh(_products(shown)).flip(1)
        return dict(zip(matrices, squares.clamp_min(0).sqrt().tolist(), strict=True))

    @torch.no_grad()
    def stable_ranks(self, values: dict[str, list[float]]) -> dict[str, float]:
        """‖W‖_F² / σ₀² of each weight, from 1 to its rank, by the `values` of now.

        Like σ₀ it is an estimate, here from above. Weights that are zero or not finite give NaN.
        """
        if not values:
            return {}
        norms = torch._foreach_norm([weight for _, weight in self._weights()])
        lengths = torch.stack(norms).double().tolist()
        return {
            name: (length / top[0]) ** 2 if top[0] and math.isfinite(length) else math.nan
            for (name, top), length in zip(values.items(), lengths, strict=True)
        }

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        for network, module in self._networks.items():
            for name, parameter in module.named_parameters():
                if parameter.ndim > 1 and min(_matrix(parameter).shape) > 1:
                    yield f"{network}/{name}", parameter.detach()


def _finite(columns: Tensor) -> Tensor:
    """The columns in float64; NaN and Inf, which would stay in the vectors for good, become 0."""
    return columns.nan_to_num(0, 0, 0).double()


def _products(columns: Sequence[Tensor]) -> Tensor:
    """Inner products [n, 3, 3] of the columns of each matrix [·, at most 3].

    So many small matrices are one batch to a GPU, whatever their rows.
    """
    products = []
    for each in columns:
        missing = TOP - each.shape[1]
        products.append(F.pad(each.T @ each, (0, missing, 0, missing)))
    return torch.stack(products)


def _orthonormal(columns: Sequence[Tensor], former: Sequence[Tensor]) -> Iterator[Tensor]:
    """Orthonormal columns that span those of each matrix [·, at most 3]; the former ones for zeros."""
    products = _products(columns)
    lengths = products.diagonal(dim1=1, dim2=2).sqrt()
    scales = torch.where(lengths > 0, 1 / lengths, 0)
    scaled = products * scales[:, :, None] * scales[:, None, :]
    # so that parallel columns, and those of zeros, have a factor too
    scaled.diagonal(dim1=1, dim2=2).add_(_JITTER)
    factor = torch.linalg.cholesky_ex(scaled).L
    change = torch.linalg.solve_triangular(factor, torch.diag_embed(scales), upper=False)
    for each, before, turn, length in zip(columns, former, change.mT, lengths, strict=True):
        count = each.shape[1]
        yield torch.where(length[:count] > 0, each @ turn[:count, :count], before.double())


def largest(values: dict[str, list[float]]) -> dict[str, float]:
    """Each network's largest of the singular values from `Spectra`, keyed as `spectrum_generator`."""
    largest_of: dict[str, float] = {}
    for name, top in values.items():
        signal = f"spectrum_{name.partition('/')[0]}"
        largest_of[signal] = max(largest_of.get(signal, 0.0), *top)
    return largest_of


def _start(weight: Tensor) -> Tensor:
    """Orthonormal vectors [in, at most 3], the same for the same shape."""
    rows, columns = _matrix(weight).shape
    draw = torch.Generator().manual_seed(0)
    vectors = torch.randn(columns, min(TOP, rows, columns), generator=draw, device="cpu")
    return torch.linalg.qr(vectors).Q.to(weight)


def _matrix(weight: Tensor) -> Tensor:
    """[out, in · kh · kw]: a view of a channels-last weight."""
    return weight.permute(0, *range(2, weight.ndim), 1).flatten(1)
