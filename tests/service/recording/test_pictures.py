"""Pictures for people: grids that hold the images as they are, and where a run keeps them."""

import io

import numpy as np
import pytest
from PIL import Image

from service.recording.pictures import (
    CAPTION_PIXELS,
    LONGEST_CAPTION_PIXELS,
    GridLook,
    grid_key,
    grid_png,
    latest_grids,
)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_holds_the_images_two_pixels_apart(channels):
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (6, 8, 8, channels), np.uint8)
    sheet = np.asarray(Image.open(io.BytesIO(grid_png(images, GridLook(3, 16)))))
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


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("names", "height"),
    [
        (("0", "1"), CAPTION_PIXELS),
        (("daisy", "a very long name of a flower, longer than any picture"), LONGEST_CAPTION_PIXELS),
        (("", "rose garden"), None),
    ],
)
def test_names_stand_over_their_columns_however_long_they_are(channels, names, height):
    images = np.full((4, 32, 32, channels), 99, np.uint8)
    plain, named = (
        np.asarray(Image.open(io.BytesIO(grid_png(images, GridLook(2, 32, captions)))))
        for captions in ((), names)
    )
    added = named.shape[0] - plain.shape[0]
    assert CAPTION_PIXELS <= added <= LONGEST_CAPTION_PIXELS + 4
    assert height is None or abs(added - height) <= 12
    assert np.array_equal(named[added:], plain)
    for i, name in enumerate(names):  # nothing is written over another's column
        over = named[:added, i * 34 : i * 34 + 32]
        assert bool(over.any()) == bool(name)


def test_names_that_are_all_empty_take_no_room():
    images = np.zeros((2, 32, 32, 1), np.uint8)
    assert grid_png(images, GridLook(2, 32, ("", ""))) == grid_png(images, GridLook(2, 32))
