"""Pixels of a rung: the exact area average, whatever the encoding."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service.data.decode import decode, fit
from service.data.image import LARGEST_PIXELS
from service.errors import DataError


def encode(pixels: np.ndarray, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes, channels: int, resolution: int) -> np.ndarray:
    out = np.empty((resolution, resolution, channels), np.uint8)
    decode(memoryview(data), out)
    return out


@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 3]), st.integers(0, 100))
def test_shrinking_is_the_rounded_average_of_the_area(factor, channels, seed):
    side = 8
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (side * factor, side * factor, channels), np.uint8)
    tiles = pixels.reshape(side, factor, side, factor, channels).astype(float)
    expected = np.floor(tiles.mean((1, 3)) + 0.5)
    assert np.array_equal(fit(pixels, side), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_decodes_to_its_own_pixels(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, channels), np.uint8)
    assert np.array_equal(decoded(encode(pixels, "PNG"), channels, 16), pixels)
    assert np.array_equal(decoded(encode(pixels, "PNG"), channels, 4), fit(pixels, 4))


@pytest.mark.parametrize("resolution", [64, 32, 16, 8, 4])
def test_a_jpeg_is_scaled_to_the_rung(resolution):
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    pixels = np.stack([np.tile(ramp, (64, 1))] * 3, axis=2)
    result = decoded(encode(pixels, "JPEG", quality=95), 3, resolution)
    assert result.shape == (resolution, resolution, 3)
    assert abs(result.astype(int) - fit(pixels, resolution)).max() <= 6


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no image at all",
        b"\xff\xd8\xff broken jpeg",
        encode(np.zeros((16, 16), np.uint8), "PNG")[:40],
        encode(np.zeros((4, 4), np.uint8), "PNG"),
        encode(np.zeros((32, 4), np.uint8), "PNG"),
        encode(np.zeros((4, 4), np.uint8), "JPEG"),
        encode(np.full((64, 64), 9, np.uint8), "JPEG")[:300],
    ],
)
def test_what_is_no_image_of_the_rung_is_a_data_error(data):
    with pytest.raises(DataError):
        decoded(data, 1, 8)


@given(st.integers(8, 40), st.integers(1, 8), st.sampled_from([1, 3]), st.integers(0, 100))
def test_any_size_is_averaged_by_how_much_of_each_pixel_is_covered(side, resolution, channels, seed):
    """Against pixels cut into so many parts that both grids are whole numbers of them."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, channels), np.uint8)
    fine = pixels.repeat(resolution, 0).repeat(resolution, 1).astype(float)
    expected = fine.reshape(resolution, side, resolution, side, channels).mean((1, 3))
    assert abs(fit(pixels, resolution) - expected).max() <= 0.5 + 1e-4 * 255


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_what_is_not_square_is_cut_to_its_middle(kind):
    pixels = np.zeros((16, 48, 3), np.uint8)
    pixels[:, 16:32] = 255
    result = decoded(encode(pixels, kind, quality=100), 3, 8)
    assert result[:, 1:-1].min() > 220


def test_sizes_may_change_from_image_to_image():
    """The decoder remembers what the last image was like; the next is none the worse for it."""
    rng = np.random.default_rng(0)
    for side in (64, 256, 32, 32, 100, 64, 32, 512, 32):
        smooth = rng.integers(0, 256, (1, 1, 3)).repeat(side, 0).repeat(side, 1).astype(np.uint8)
        result = decoded(encode(smooth, "JPEG", quality=95), 3, 32)
        assert abs(result.astype(int) - smooth[0, 0]).max() <= 3


def test_colours_that_only_pillow_knows_are_read_too():
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    assert abs(decoded(buffer.getvalue(), 3, 8).astype(int) - (255, 0, 0)).max() < 40


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_absurd_dimensions_are_refused_before_any_memory_is_taken(kind):
    """Of a header that claims more pixels than anyone has: a decompression bomb."""
    data = bytearray(encode(np.zeros((16, 16), np.uint8), kind))
    if kind == "PNG":
        data[16:24] = struct.pack(">II", 60000, 60000)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    else:
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", 60000, 60000)
    assert LARGEST_PIXELS < 60000**2
    with pytest.raises(DataError, match=r"60000×60000|3600000000 pixels"):
        decoded(bytes(data), 1, 8)
