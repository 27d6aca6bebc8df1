"""Pixels of a rung: the exact area average, whatever the encoding."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service.data.decode import decode, shrink
from service.errors import DataError


def encode(pixels: np.ndarray, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(buffer, kind, **options)
    return buffer.getvalue()


@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 3]), st.integers(0, 100))
def test_shrinking_is_the_rounded_average_of_the_area(factor, channels, seed):
    side = 8
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (side * factor, side * factor, channels), np.uint8)
    tiles = pixels.reshape(side, factor, side, factor, channels).astype(float)
    expected = np.floor(tiles.mean((1, 3)) + 0.5)
    assert np.array_equal(shrink(pixels, side), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_decodes_to_its_own_pixels(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, channels), np.uint8)
    assert np.array_equal(decode(encode(pixels, "PNG"), channels, 16), pixels)
    assert np.array_equal(decode(encode(pixels, "PNG"), channels, 4), shrink(pixels, 4))


@pytest.mark.parametrize("resolution", [64, 32, 16, 8, 4])
def test_a_jpeg_is_scaled_to_the_rung(resolution):
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    pixels = np.stack([np.tile(ramp, (64, 1))] * 3, axis=2)
    found = decode(encode(pixels, "JPEG", quality=95), 3, resolution)
    assert found.shape == (resolution, resolution, 3)
    assert abs(found.astype(int) - shrink(pixels, resolution)).max() <= 6


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no image at all",
        b"\xff\xd8\xff broken jpeg",
        encode(np.zeros((16, 16), np.uint8), "PNG")[:40],
        encode(np.zeros((12, 12), np.uint8), "PNG"),
        encode(np.zeros((16, 32), np.uint8), "PNG"),
        encode(np.zeros((4, 4), np.uint8), "PNG"),
    ],
)
def test_what_is_no_image_of_the_rung_is_a_data_error(data):
    with pytest.raises(DataError):
        decode(data, 1, 8)
