"""The sliced Wasserstein distance between small patches of images, separately at each scale."""

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from service.random import philox

SMALLEST_LEVEL = 16
PATCH = 7
PATCHES_PER_IMAGE = 128
DIRECTIONS = 512
SCALE = 1000
"""The distances are reported in thousandths (Karras et al. 2018, table 1)."""

_BATCH = 256
# Projections of 2 million patches, from 16,384 images, are 270 MB a set.
_DIRECTIONS_AT_ONCE = 32
# The Gaussian-like kernel of Burt and Adelson 1983 in its binomial form.
_KERNEL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


def levels(resolution: int) -> list[int]:
    """Sides in pixels of the pyramid's levels, smallest first: halved while that gives 16 or more.

    Smaller images have one level, their own. ValueError below 7, where no patch fits.
    """
    if resolution < PATCH:
        raise ValueError(f"patches of {PATCH} px do not fit in images of {resolution} px")
    sides = [resolution]
    while sides[0] % 2 == 0 and sides[0] // 2 >= SMALLEST_LEVEL:
        sides.insert(0, sides[0] // 2)
    return sides


def swd(real: NDArray[np.uint8], generated: NDArray[np.uint8], seed: int = 0) -> dict[int, float]:
    """Distance ×1000 of two sets uint8 [n, h, h, c], by level's side in pixels (Karras et al. 2018, §5).

    Each image gives 128 patches of 7×7 with all channels at each level of a Laplacian pyramid, whose
    lowest level is the image itself, shrunk. Each set's channels are scaled to mean 0 and deviation 1.
    The distance is the mean over 512 random directions. Patches lie at the same places in both sets,
    which reduces noise and makes the distance of equal sets 0. The paper takes 16,384 images, which
    need 4 GB. ValueError for sets of different shapes.
    """
    if (
        real.shape != generated.shape
        or real.ndim != 4
        or real.shape[1] != real.shape[2]
        or not len(real)
    ):
        raise ValueError(
            f"both sets must be [n, h, h, c] of one shape, found {list(real.shape)} and"
            f" {list(generated.shape)}; cut the larger one"
        )
    result = {}
    for side in levels(real.shape[1]):
        a, b = (_normalised(patches(images, side, seed)) for images in (real, generated))
        directions = unit_directions(a.shape[1], seed)
        result[side] = SCALE * sliced_wasserstein(a, b, directions)
    return result


def sliced_wasserstein(
    a: NDArray[np.float32], b: NDArray[np.float32], directions: NDArray[np.float64]
) -> float:
    """Mean Wasserstein-1 distance between projections of two sets on `directions` [k, d] of length 1.

    Both sets are [n, d] with the same n (Rabin et al. 2011).
    """
    total = 0.0
    for start in range(0, len(directions), _DIRECTIONS_AT_ONCE):
        some = directions[start : start + _DIRECTIONS_AT_ONCE].astype(np.float32)
        projected = [np.sort(some @ points.T, axis=1) for points in (a, b)]
        distances = np.abs(projected[0] - projected[1])
        total += float(distances.mean(1, dtype=np.float64).sum())
    return total / len(directions)


def unit_directions(width: int, seed: int, count: int = DIRECTIONS) -> NDArray[np.float64]:
    """Directions [count, width], evenly distributed on the sphere: normals scaled to length 1."""
    words = philox.words(philox.key("directions", seed), np.arange(count), width)
    normals = torch.special.ndtri(torch.from_numpy((words + 0.5) / 2.0**32)).numpy()
    return normals / np.linalg.norm(normals, axis=1, keepdims=True)


def laplacian_pyramid(images: Tensor, smallest: int) -> dict[int, Tensor]:
    """Levels of float images [n, c, h, h] by their side, down to `smallest` (Burt and Adelson 1983).

    Each level but the smallest is what shrinking to half and enlarging again loses, so enlarging and
    adding restores the images.
    """
    result = {}
    while images.shape[2] > smallest:
        small = _blur(images)[:, :, ::2, ::2]
        result[images.shape[2]] = images - enlarge(small)
        images = small
    return result | {images.shape[2]: images}


def enlarge(images: Tensor) -> Tensor:
    """Images at twice the size: zeros in between, then blurred."""
    n, channels, height, width = images.shape
    wide = images.new_zeros(n, channels, 2 * height, 2 * width)
    wide[:, :, ::2, ::2] = 4 * images
    return _blur(wide)


def _blur(images: Tensor) -> Tensor:
    kernel = images.new_tensor(_KERNEL)
    channels = images.shape[1]
    x = F.pad(images, (2, 2, 2, 2), mode="reflect")
    for shape in ((1, 5), (5, 1)):
        x = F.conv2d(x, kernel.view(1, 1, *shape).expand(channels, -1, -1, -1), groups=channels)
    return x


def patches(images: NDArray[np.uint8], side: int, seed: int) -> NDArray[np.float32]:
    """Patches [n · 128, c, 7, 7] of the level of this side; seed, side and number key their places."""
    places = philox.words(
        philox.key("patches", seed, side), np.arange(len(images)), 2 * PATCHES_PER_IMAGE
    )
    corners = philox.integers(places, side - PATCH + 1).reshape(len(images), PATCHES_PER_IMAGE, 2)
    shape = (len(images), PATCHES_PER_IMAGE, images.shape[3], PATCH, PATCH)
    result = np.empty(shape, np.float32)
    for rows, level in _in_batches(images, side):
        windows = np.lib.stride_tricks.sliding_window_view(level, (PATCH, PATCH), axis=(2, 3))
        each = np.arange(len(level))[:, None]
        result[rows] = windows[each, :, corners[rows, :, 0], corners[rows, :, 1]]
    return result.reshape(-1, *shape[2:])


def _in_batches(images: NDArray[np.uint8], side: int) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    smallest = levels(images.shape[1])[0]
    for start in range(0, len(images), _BATCH):
        rows = slice(start, start + _BATCH)
        pixels = torch.tensor(np.ascontiguousarray(images[rows])).permute(0, 3, 1, 2).float()
        yield rows, laplacian_pyramid(pixels, smallest)[side].numpy()


def _normalised(patches: NDArray[np.float32]) -> NDArray[np.float32]:
    """Patches [m, c, 7, 7] as points [m, c · 49], each channel with mean 0 and deviation 1."""
    mean = patches.mean((0, 2, 3), dtype=np.float64, keepdims=True)
    patches -= mean.astype(np.float32)
    deviation = np.sqrt(np.square(patches).mean((0, 2, 3), dtype=np.float64, keepdims=True))
    patches /= np.where(deviation > 0, deviation, 1).astype(np.float32)
    return patches.reshape(len(patches), math.prod(patches.shape[1:]))
