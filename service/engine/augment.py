"""Augmentation of all that the discriminator sees, so that few images do not teach it by heart.

Every image is changed at random, real or generated, in both networks' steps, and gradients go through.
The change is a function of the image's uniform numbers and of a chance on the device, so nobody waits.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

DRAWS = {"diffaugment": 10, "ada": 28}
"""Uniform numbers that an image needs."""

MOVED = 8
"""Images move by up to this part of their side."""

_BILINEAR = 0
_PADDING = {"zeros": 0, "reflection": 2}


def augment(kind: str, images: Tensor, uniforms: Tensor, chance: Tensor) -> Tensor:
    """Images [n, c, h, w] in [-1, 1], changed as their uniforms [n, DRAWS] in [0, 1) say.

    `chance` is a scalar in [0, 1], that of each transformation. The kinds are DiffAugment with colour,
    translation and cutout (Zhao et al. 2020, §3), and the pixel blits, geometry and colour of ADA
    (Karras et al. 2020, appendix B), which here samples bilinearly. Gray and RGB.
    """
    return _PIPELINES[kind](images, _Draws(uniforms.to(images.dtype), chance.to(images.dtype)))


class _Draws:
    """Takes an image's uniform numbers one by one."""

    def __init__(self, uniforms: Tensor, chance: Tensor):
        self._columns = iter(uniforms.unbind(1))
        self.chance = chance

    def uniform(self, low: float, high: float) -> Tensor:
        """Uniform in [low, high): [n]."""
        return low + (high - low) * next(self._columns)

    def normal(self, deviation: float) -> Tensor:
        """Normal about 0: [n]."""
        # 0 and 1 would be infinite
        inside = next(self._columns).clamp(1e-6, 1 - 1e-6)
        return deviation * math.sqrt(2) * torch.erfinv(2 * inside - 1)

    def applies(self, chance: Tensor | None = None) -> Tensor:
        """Whether a transformation applies: bool [n]."""
        return next(self._columns) < (self.chance if chance is None else chance)


# DiffAugment --------------------------------------------------------------------------------------


def _diffaugment(images: Tensor, draws: _Draws) -> Tensor:
    images = _shift_colours(images, draws)
    images = _translate(images, draws)
    return _cut_out(images, draws)


def _shift_colours(images: Tensor, draws: _Draws) -> Tensor:
    applies = _wide(draws.applies())
    brightness, saturation, contrast = (
        _wide(draws.uniform(low, high)) for low, high in ((-0.5, 0.5), (0, 2), (0.5, 1.5))
    )
    changed = images + brightness
    gray = changed.mean(1, keepdim=True)
    changed = gray + (changed - gray) * saturation
    middle = changed.mean((1, 2, 3), keepdim=True)
    changed = middle + (changed - middle) * contrast
    return torch.where(applies, changed, images)


def _translate(images: Tensor, draws: _Draws) -> Tensor:
    """Moved by whole pixels, zeros where nothing was."""
    applies, side = draws.applies(), images.shape[-1]
    most = round(side / MOVED)
    steps = [torch.floor(draws.uniform(-most, most + 1)) for _ in range(2)]
    matrix = _identity(images)
    for row, step in enumerate(steps):
        matrix[:, row, 2] = 2 * step / side
    return _sample(images, torch.where(applies[:, None, None], matrix, _identity(images)), "zeros")


def _cut_out(images: Tensor, draws: _Draws) -> Tensor:
    """A square of half the side becomes 0; its middle is anywhere."""
    applies, side = _wide(draws.applies()), images.shape[-1]
    places = torch.arange(side, device=images.device)
    inside = []
    for dim in (2, 3):
        middle = torch.floor(draws.uniform(0, side))
        from_middle = places - middle[:, None] + side // 4
        within = (from_middle >= 0) & (from_middle < side // 2)
        inside.append(within[:, None, :, None] if dim == 2 else within[:, None, None, :])
    return images.masked_fill(applies & inside[0] & inside[1], 0)


# ADA's pipeline -----------------------------------------------------------------------------------


def _ada(images: Tensor, draws: _Draws) -> Tensor:
    moved = _sample(images, _geometry(images, draws), "reflection")
    return _gray(moved, draws) if images.shape[1] == 1 else _colour(moved, draws)


def _geometry(images: Tensor, draws: _Draws) -> Tensor:
    """From places in the result to places in the image: matrices [n, 3, 3] in halves of the side."""
    side, nothing = images.shape[-1], _identity(images)
    matrix = nothing

    def then(change: Tensor, applies: Tensor) -> Tensor:
        return matrix @ torch.where(applies[:, None, None], change, nothing)

    applies, mirrored = draws.applies(), draws.uniform(0, 1) < 0.5
    sign = 1 - 2 * mirrored.to(images.dtype)
    matrix = then(_scaled(images, sign, torch.ones_like(sign)), applies)
    applies = draws.applies()
    matrix = then(_turned(images, torch.floor(draws.uniform(0, 4)) * (math.pi / 2)), applies)
    applies = draws.applies()
    steps = [torch.round(draws.uniform(-side / MOVED, side / MOVED)) * 2 / side for _ in range(2)]
    matrix = then(_shifted(images, *steps), applies)

    applies = draws.applies()
    size = torch.exp2(-draws.normal(0.2))
    matrix = then(_scaled(images, size, size), applies)
    # two rotations, so that with neither the chance is 1 − p
    turns = 1 - torch.sqrt(1 - draws.chance)
    applies = draws.applies(turns)
    matrix = then(_turned(images, draws.uniform(-math.pi, math.pi)), applies)
    applies = draws.applies()
    size = torch.exp2(-draws.normal(0.2))
    matrix = then(_scaled(images, size, 1 / size), applies)
    applies = draws.applies(turns)
    matrix = then(_turned(images, draws.uniform(-math.pi, math.pi)), applies)
    applies = draws.applies()
    return then(_shifted(images, 2 * draws.normal(1 / MOVED), 2 * draws.normal(1 / MOVED)), applies)


def _gray(images: Tensor, draws: _Draws) -> Tensor:
    """Brightness, contrast, and a negative; hue and saturation are drawn, but change nothing."""
    brightness, contrast, negative = _tones(draws)
    return ((images + _wide(brightness)) * _wide(contrast)) * _wide(1 - 2 * negative)


def _colour(images: Tensor, draws: _Draws) -> Tensor:
    """Brightness, contrast, luma flip, hue and saturation of RGB."""
    brightness, contrast, negative = _tones(draws)
    axis = images.new_full((3,), 1 / math.sqrt(3))
    luma = torch.outer(axis, axis)
    colours = torch.eye(3, dtype=images.dtype, device=images.device) - luma
    x, y, z = axis
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).view(3, 3)
    applies = draws.applies()
    angle = torch.where(applies, draws.uniform(-math.pi, math.pi), 0)[:, None, None]
    applies = draws.applies()
    saturation = torch.where(applies, torch.exp2(draws.normal(1.0)), 1)[:, None, None]
    # about the gray axis: its own part is flipped, what is across it turned and stretched
    turned = angle.cos() * colours + angle.sin() * cross
    change = (1 - 2 * negative)[:, None, None] * luma + saturation * turned
    change = change * contrast[:, None, None]
    flat = (images + _wide(brightness)).flatten(2)
    return (change @ flat).view_as(images)


def _tones(draws: _Draws) -> tuple[Tensor, Tensor, Tensor]:
    """What is added, what is multiplied with, and 1 where the luma is flipped: [n] each."""
    applies = draws.applies()
    brightness = torch.where(applies, draws.normal(0.2), 0)
    applies = draws.applies()
    contrast = torch.where(applies, torch.exp2(draws.normal(0.5)), 1)
    applies = draws.applies()
    negative = applies & (draws.uniform(0, 1) < 0.5)
    return brightness, contrast, negative.to(brightness.dtype)


_PIPELINES: dict[str, Callable[[Tensor, _Draws], Tensor]] = {"diffaugment": _diffaugment, "ada": _ada}


# Places -------------------------------------------------------------------------------------------


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _identity(images: Tensor) -> Tensor:
    eye = torch.eye(3, dtype=images.dtype, device=images.device)
    return eye.repeat(len(images), 1, 1)


def _scaled(images: Tensor, across: Tensor, down: Tensor) -> Tensor:
    matrix = _identity(images)
    matrix[:, 0, 0], matrix[:, 1, 1] = across, down
    return matrix


def _turned(images: Tensor, angle: Tensor) -> Tensor:
    matrix = _identity(images)
    matrix[:, 0, 0] = matrix[:, 1, 1] = angle.cos()
    matrix[:, 1, 0] = angle.sin()
    matrix[:, 0, 1] = -angle.sin()
    return matrix


def _shifted(images: Tensor, across: Tensor, down: Tensor) -> Tensor:
    matrix = _identity(images)
    matrix[:, 0, 2], matrix[:, 1, 2] = across, down
    return matrix


def _sample(images: Tensor, matrix: Tensor, padding: str) -> Tensor:
    grid = F.affine_grid(matrix[:, :2], list(images.shape), align_corners=False)
    return _Sampled.apply(images, grid, _PADDING[padding])


class _Sampled(torch.autograd.Function):
    """Bilinear samples of images at fixed places: linear in the images.

    So its gradient can be differentiated too, which torch's own sampling does not know of.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, grid: Tensor, padding: int) -> Tensor:
        ctx.save_for_backward(images, grid)
        ctx.padding = padding
        return torch.grid_sampler(images, grid, _BILINEAR, padding, False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        images, grid = ctx.saved_tensors
        return _Spread.apply(grads[0], images, grid, ctx.padding), None, None


class _Spread(torch.autograd.Function):
    """The transpose of `_Sampled`: values at the places, spread over the images' pixels."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, images: Tensor, grid: Tensor, padding: int) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.padding = padding
        spread, _ = torch.ops.aten.grid_sampler_2d_backward(
            values.contiguous(), images, grid, _BILINEAR, padding, False, [True, False]
        )
        return spread

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grid,) = ctx.saved_tensors
        return _Sampled.apply(grads[0], grid, ctx.padding), None, None, None
