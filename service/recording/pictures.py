"""Pictures for people: grids as PNG."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GAP_PIXELS = 2


def grid_png(images: NDArray[np.uint8], columns: int, pixels: int) -> bytes:
    """A PNG of uint8 [n, h, w, c] row by row, `columns` wide, 2 px apart on black.

    Smaller images are enlarged to `pixels` of a side by whole factors, without smoothing.
    """
    factor = max(1, pixels // images.shape[1])
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    shape = (rows * (height + GAP_PIXELS) - GAP_PIXELS, columns * (width + GAP_PIXELS) - GAP_PIXELS)
    sheet = np.zeros((*shape, channels), np.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + GAP_PIXELS), (i % columns) * (width + GAP_PIXELS)
        sheet[top : top + height, left : left + width] = image
    buffer = io.BytesIO()
    Image.fromarray(sheet.squeeze(2) if channels == 1 else sheet).save(buffer, "PNG")
    return buffer.getvalue()
