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

from service.data.image import Mode, check_size, is_srgb, one_image, orientation, read_image, upright
from service.errors import DataError

Pixels = NDArray[np.uint8]
Encoded = bytes | memoryview

_JPEG = b"\xff\xd8"
_APP0, _APP1, _APP2, _APP15, _COMMENT = 0xE0, 0xE1, 0xE2, 0xEF, 0xFE
_COLOURS: dict[int, tuple[str, Mode]] = {1: ("GRAY", "L"), 3: ("RGB", "RGB")}
_LARGEST_SCRATCH = 1 << 24
_FINE = 8
_NOWHERE: Pixels = np.empty(0, np.uint8)


class _Habits(threading.local):
    """What a decoding thread's last JPEG was like; the next one is probably similar."""

    def __init__(self) -> None:
        self.exact: dict[int, bool] = {}
        self.scratch: Pixels = np.empty(0, np.uint8)


_habits = _Habits()


def decode(data: Encoded, out: Pixels) -> None:
    """Fill `out`, uint8 [resolution, resolution, 1 or 3] and contiguous, with an image.

    The picture is that of `read_image`. DataError if the image is bad, or smaller than the resolution.
    """
    with one_image():
        turn = _plain_turn(data) if data[:2] == _JPEG else None
        if turn is None:
            pixels: Pixels | None = _decode_other(data, out)
        else:
            pixels = _decode_jpeg(data, out)
            if turn != 1:
                pixels = _turned(out if pixels is None else pixels, turn)
        if pixels is not None:
            out[:] = fit(pixels, len(out))


def _plain_turn(data: Encoded) -> int | None:
    """How a JPEG lies, 1 … 8; None if its colours are not sRGB's, which the fast decoder would show.

    Only a JPEG with EXIF, XMP or a colour profile is opened for that; those of `pack` have none.
    """
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker in (_APP1, _APP2):
            with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
                return orientation(image) if is_srgb(image.info.get("icc_profile")) else None
        if not (_APP0 <= marker <= _APP15 or marker == _COMMENT):
            break
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return 1


def _turned(pixels: Pixels, turn: int) -> Pixels:
    """Pixels [h, w, c] of a picture that lies so, upright."""
    plane = np.asarray(
        upright(Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels), turn)
    )
    return plane.reshape(*plane.shape[:2], pixels.shape[2])


def _decode_jpeg(data: Encoded, out: Pixels) -> Pixels | None:
    """The image, scaled to no less than `out`; None if it has just that size and is in `out` already."""
    resolution, colour = len(out), _COLOURS[out.shape[2]][0]
    buffer = out if _habits.exact.get(resolution, True) else _habits.scratch
    try:
        pixels = simplejpeg.decode_jpeg(
            data, colour, min_height=resolution, min_width=resolution, min_factor=1, buffer=buffer
        )
    except ValueError:  # the buffer is too small, or the image is bad
        pixels, buffer = _decode_jpeg_of_any_size(data, out), _NOWHERE
    exact = pixels.shape == out.shape
    if exact and buffer is out:
        return None
    _habits.exact[resolution] = exact
    if not exact and _habits.scratch.nbytes < pixels.nbytes <= _LARGEST_SCRATCH:
        _habits.scratch = np.empty(pixels.nbytes, np.uint8)
    return pixels


def _decode_jpeg_of_any_size(data: Encoded, out: Pixels) -> Pixels:
    """The image in its own memory, after a check that its size is sane."""
    resolution, colour = len(out), _COLOURS[out.shape[2]][0]
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        check_size(width, height)
        return simplejpeg.decode_jpeg(
            data, colour, min_height=resolution, min_width=resolution, min_factor=1
        )
    except ValueError:  # colours that libjpeg-turbo does not convert, such as CMYK
        return _decode_other(data, out)


def _decode_other(data: Encoded, out: Pixels) -> Pixels:
    image = read_image(io.BytesIO(data), _COLOURS[out.shape[2]][1], at_least=len(out))
    factor = min(image.size) // (_FINE * len(out))
    if factor > 1:  # whole tiles in Pillow first: `fit` needs several times the memory
        image = image.reduce(factor)
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


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
