"""Pictures for people: grids that hold the images as they are, and where a run keeps them."""

import io

import numpy as np
import pytest
from PIL import Image

from service.recording.pictures import grid_key, grid_png, latest_grids


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_holds_the_images_two_pixels_apart(channels):
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (6, 8, 8, channels), np.uint8)
    sheet = np.asarray(Image.open(io.BytesIO(grid_png(images, columns=3, pixels=16))))
    sheet = sheet.reshape(*sheet.shape[:2], channels)
    assert sheet.shape == (2 * 16 + 2, 3 * 16 + 2 * 2, channels)
    for i, image in enumerate(images):
        top, left = (i // 3) * 18, (i % 3) * 18
        tile = sheet[top : top + 16, left : left + 16]
        assert np.array_equal(tile[::2, ::2], image)
        assert np.array_equal(tile[1::2, 1::2], image)
    assert not sheet[16:18].any()
    assert not sheet[:, 16:18].any()


def test_the_last_attempt_that_came_to_a_clock_has_its_grid():
    keys = [grid_key(clock, attempt) for clock, attempt in ((32, 0), (16, 0), (32, 2), (32, 1), (48, 1))]
    strangers = ["pictures/grid-x.png", "pictures/other.png", "checkpoints/grid-16.png"]
    assert latest_grids([*keys, *strangers]) == [
        (16, grid_key(16, 0)),
        (32, grid_key(32, 2)),
        (48, grid_key(48, 1)),
    ]
