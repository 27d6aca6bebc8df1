"""From encoded bytes to pixels of the rung: uint8, the average over the area of each pixel."""

import io

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from service.errors import DataError

Pixels = NDArray[np.uint8]
_JPEG = b"\xff\xd8"
_COLOURS = {1: ("GRAY", "L"), 3: ("RGB", "RGB")}
LARGEST_PIXELS = 1 << 26


def decode(data: bytes, channels: int, resolution: int) -> Pixels:
    """uint8 [resolution, resolution, channels] of an image that is square and 2ᵏ times as large.

    JPEGs are scaled while they are decoded. DataError says what is wrong with a bad sample.
    """
    jpeg_colour, mode = _COLOURS[channels]
    try:
        if data[:2] == _JPEG:
            pixels = simplejpeg.decode_jpeg(
                data, jpeg_colour, min_height=resolution, min_width=resolution, min_factor=1
            )
        else:
            with Image.open(io.BytesIO(data)) as image:
                if image.width * image.height > LARGEST_PIXELS:
                    raise DataError(f"an image of {image.width}×{image.height} pixels")
                pixels = np.asarray(image.convert(mode))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"not an image that can be decoded ({error})") from error
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    return shrink(pixels, resolution)


def shrink(pixels: Pixels, resolution: int) -> Pixels:
    """Area average of uint8 [h, w, c] down to `resolution`; DataError where it does not divide."""
    height, width, channels = pixels.shape
    if height == resolution and width == resolution:
        return pixels
    factor = height // resolution
    if height != width or factor * resolution != height:
        raise DataError(f"an image of {width}×{height}, wanted a square multiple of {resolution}")
    tiles = pixels.reshape(resolution, factor, resolution, factor, channels)
    sums = tiles.sum((1, 3), dtype=np.uint32)
    area = factor * factor
    return ((2 * sums + area) // (2 * area)).astype(np.uint8)
