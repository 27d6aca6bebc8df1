"""From encoded bytes to pixels at a resolution: uint8, the average over the area of each pixel.

An image that is not square is cut to its centred square. JPEGs are scaled while they are decoded, so
that a low resolution costs a fraction. Decoding releases Python's lock, so threads can work in parallel.
"""

import functools
import io
import threading

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from service.errors import DataError

Pixels = NDArray[np.uint8]
Encoded = bytes | memoryview

LARGEST_PIXELS = 1 << 26
_JPEG = b"\xff\xd8"
_COLOURS = {1: ("GRAY", "L"), 3: ("RGB", "RGB")}
_LARGEST_SCRATCH = 1 << 24
_NOWHERE: Pixels = np.empty(0, np.uint8)


class _Habits(threading.local):
    """What a decoding thread's last JPEG was like; the next one is probably similar."""

    def __init__(self) -> None:
        self.exact: dict[int, bool] = {}
        self.scratch: Pixels = np.empty(0, np.uint8)


_habits = _Habits()


def decode(data: Encoded, out: Pixels) -> None:
    """Fill `out`, uint8 [resolution, resolution, 1 or 3] and contiguous, with an image.

    DataError if the image is bad, or smaller than the resolution.
    """
    if data[:2] == _JPEG:
        pixels = _decode_jpeg(data, out)
        if pixels is None:
            return
    else:
        pixels = _decode_other(data, out.shape[2])
    out[:] = fit(pixels, len(out))


def _decode_jpeg(data: Encoded, out: Pixels) -> Pixels | None:
    """The image, scaled to no less than `out`; None if it has just that size and is in `out` already."""
    resolution, colour = len(out), _COLOURS[out.shape[2]][0]
    buffer = out if _habits.exact.get(resolution, True) else _habits.scratch
    try:
        pixels = simplejpeg.decode_jpeg(
            data, colour, min_height=resolution, min_width=resolution, min_factor=1, buffer=buffer
        )
    except ValueError:  # the buffer is too small, or the image is bad
        pixels, buffer = _decode_jpeg_of_any_size(data, colour, resolution), _NOWHERE
    exact = pixels.shape == out.shape
    if exact and buffer is out:
        return None
    _habits.exact[resolution] = exact
    if not exact and _habits.scratch.nbytes < pixels.nbytes <= _LARGEST_SCRATCH:
        _habits.scratch = np.empty(pixels.nbytes, np.uint8)
    return pixels


def _decode_jpeg_of_any_size(data: Encoded, colour: str, resolution: int) -> Pixels:
    """The image in its own memory, after a check that its size is sane."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(width, height)
        return simplejpeg.decode_jpeg(
            data, colour, min_height=resolution, min_width=resolution, min_factor=1
        )
    except ValueError:  # colours that libjpeg-turbo does not convert, such as CMYK
        return _decode_other(data, 1 if colour == "GRAY" else 3)


def _decode_other(data: Encoded, channels: int) -> Pixels:
    try:
        with Image.open(io.BytesIO(data)) as image:
            _check_size(image.width, image.height)
            pixels = np.asarray(image.convert(_COLOURS[channels][1]))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot be decoded as an image ({error})") from error
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _check_size(width: int, height: int) -> None:
    if width * height > LARGEST_PIXELS:
        raise DataError(f"the image is {width}×{height}, above the limit of {LARGEST_PIXELS} pixels")


def fit(pixels: Pixels, resolution: int) -> Pixels:
    """Area average [resolution, resolution, c] of the centred square of uint8 [h, w, c].

    DataError if the image is smaller.
    """
    height, width, _ = pixels.shape
    side = min(height, width)
    if side < resolution:
        raise DataError(f"the image is {width}×{height}, smaller than {resolution} px")
    top, left = (height - side) // 2, (width - side) // 2
    square = pixels[top : top + side, left : left + side]
    if side == resolution:
        return square
    return _whole(square, resolution) if side % resolution == 0 else _fractional(square, resolution)


def _whole(pixels: Pixels, resolution: int) -> Pixels:
    """Rounded averages of whole tiles, exact. Rows come first: they are contiguous in memory."""
    factor, channels = pixels.shape[0] // resolution, pixels.shape[2]
    rows = pixels.reshape(resolution, factor, -1)
    sums = np.add.reduce(rows, axis=1, dtype=np.uint32)
    sums = np.add.reduce(sums.reshape(resolution, resolution, factor, channels), axis=2)
    area = factor * factor
    return ((sums + area // 2) // area).astype(np.uint8)


def _fractional(pixels: Pixels, resolution: int) -> Pixels:
    """Averages in which a new pixel covers parts of old ones, weighted by the covered area."""
    side, _, channels = pixels.shape
    weights = _coverage(side, resolution)
    rows = weights @ pixels.reshape(side, -1).astype(np.float32)
    both = weights @ rows.reshape(resolution, side, channels)
    return (both + np.float32(0.5)).astype(np.uint8)


@functools.lru_cache(maxsize=64)
def _coverage(side: int, resolution: int) -> NDArray[np.float32]:
    """[resolution, side]: the share of each old pixel in each new one; rows add up to 1."""
    edges = np.arange(resolution + 1) * (side / resolution)
    pixel = np.arange(side)
    covered = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return (np.maximum(covered, 0) * (resolution / side)).astype(np.float32)
