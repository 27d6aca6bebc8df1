"""One picture in many encodings has the same pixels, packed or read from a shard; the rest is named."""

import contextlib
import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from service.data.decode import decode, fit
from service.data.image import BACKGROUND, FORMATS, read_image
from service.data.packing import prepare
from service.data.sources import open_source
from service.errors import DataError

SIDE = 64
ORIENTATION = 0x0112
LOSSLESS, LOSSY = 1, 12


def picture() -> Image.Image:
    """Smooth, of other colours at each border, and white in the lower right quarter."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1)
    pixels = np.stack([200 * x + 20, 160 * y + 40, 120 * (1 - x) + 30], axis=2)
    pixels[SIDE // 2 :, SIDE // 2 :] = 255
    return Image.fromarray(pixels.astype(np.uint8))


def cleared(mode: str) -> Image.Image:
    """The picture with nothing in its white quarter."""
    image = picture().convert("RGBA")
    alpha = np.full((SIDE, SIDE), 255, np.uint8)
    alpha[SIDE // 2 :, SIDE // 2 :] = 0
    pixels = np.asarray(image).copy()
    pixels[alpha == 0] = (7, 8, 9, 0)
    result = Image.fromarray(pixels)
    if mode == "P":
        flat = picture().quantize(200)
        holes = np.asarray(flat).copy()
        holes[alpha == 0] = 255
        paletted = Image.fromarray(holes, "P")
        paletted.putpalette(flat.getpalette()[:600] + [7, 8, 9] * 56)
        return paletted
    return result.convert(mode)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(turn: int, kind: str = "JPEG", **options) -> bytes:
    """A photo that was taken so: EXIF's orientation says how it is turned back."""
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    image = picture().transpose(Image.Transpose(back[turn]))
    return saved(image, kind, exif=exif, **options)


def deep(kind: str, **options) -> bytes:
    """The picture's grays in 16 bits."""
    return saved(
        Image.fromarray(np.asarray(picture().convert("L")).astype(np.uint16) * 257), kind, **options
    )


def big_endian_tiff() -> bytes:
    """16 bits in the other order of bytes, written by hand: a header, a strip, eight tags."""
    strip = (np.asarray(picture().convert("L")).astype(">u2") * 257).tobytes()
    values = [
        (256, SIDE),
        (257, SIDE),
        (258, 16),
        (259, 1),
        (262, 1),
        (273, 8),
        (278, SIDE),
        (279, len(strip)),
    ]
    tags = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in values)
    return (
        b"MM\x00*" + struct.pack(">I", 8 + len(strip)) + strip + struct.pack(">H", 8) + tags + bytes(4)
    )


def other_primaries() -> bytes:
    """A colour profile in which red and blue are exchanged."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exchanged = profile.replace(b"rXYZ", b"?XYZ").replace(b"bXYZ", b"rXYZ").replace(b"?XYZ", b"bXYZ")
    return exchanged.replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))


def exchanged(mode: str) -> Image.Image:
    image = picture() if mode == "RGB" else cleared("RGBA")
    bands = image.split()
    return Image.merge(mode, (bands[2], bands[1], bands[0], *bands[3:]))


def animation(kind: str, **options) -> bytes:
    others = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "blue")]
    return saved(picture(), kind, save_all=True, append_images=others, duration=50, **options)


def transparent_gray() -> bytes:
    gray = np.asarray(cleared("RGBA").convert("L")).astype(np.uint16) * 257
    gray[SIDE // 2 :, SIDE // 2 :] = 77
    return saved(Image.fromarray(gray), "PNG", transparency=77)


COLOURED: dict[str, tuple[Callable[[], bytes], int]] = {
    "png": (lambda: saved(picture(), "PNG"), LOSSLESS),
    "png, interlaced": (lambda: saved(picture(), "PNG", interlace=1), LOSSLESS),
    "png, rgba": (lambda: saved(cleared("RGBA"), "PNG"), LOSSLESS),
    "png, palette": (lambda: saved(picture().quantize(256), "PNG"), 30),
    "png, palette with transparency": (lambda: saved(cleared("P"), "PNG", transparency=255), 30),
    "png, turned": (lambda: turned(6, "PNG"), LOSSLESS),
    "png, profile": (lambda: saved(exchanged("RGB"), "PNG", icc_profile=other_primaries()), 3),
    "png, rgba and profile": (lambda: saved(exchanged("RGBA"), "PNG", icc_profile=other_primaries()), 3),
    "png, damaged profile": (lambda: saved(picture(), "PNG", icc_profile=b"no profile"), LOSSLESS),
    "apng": (lambda: animation("PNG"), LOSSLESS),
    "gif": (lambda: saved(picture().quantize(256), "GIF"), 30),
    "gif, animated": (lambda: animation("GIF"), 60),
    "webp": (lambda: saved(cleared("RGBA"), "WEBP", lossless=True), LOSSLESS),
    "webp, animated": (lambda: animation("WEBP", lossless=True), LOSSLESS),
    "webp, turned": (lambda: turned(8, "WEBP", lossless=True), LOSSLESS),
    "avif": (lambda: saved(picture(), "AVIF", quality=100, subsampling="4:4:4"), LOSSY),
    "bmp": (lambda: saved(picture(), "BMP"), LOSSLESS),
    "ppm": (lambda: saved(picture(), "PPM"), LOSSLESS),
    "tiff": (lambda: saved(picture(), "TIFF"), LOSSLESS),
    "tiff, lzw, rgba": (lambda: saved(cleared("RGBA"), "TIFF", compression="tiff_lzw"), LOSSLESS),
    "tiff, turned": (lambda: turned(5, "TIFF"), LOSSLESS),
    "tiff, cmyk": (lambda: saved(picture().convert("CMYK"), "TIFF"), LOSSLESS),
    "jpeg": (lambda: saved(picture(), "JPEG", quality=100, subsampling=0), LOSSY),
    "jpeg, progressive": (lambda: saved(picture(), "JPEG", quality=100, progressive=True), 60),
    "jpeg, cmyk": (lambda: saved(picture().convert("CMYK"), "JPEG", quality=100), LOSSY),
    "jpeg, profile": (
        lambda: saved(
            exchanged("RGB"), "JPEG", quality=100, subsampling=0, icc_profile=other_primaries()
        ),
        LOSSY,
    ),
    **{
        f"jpeg, orientation {turn}": (lambda turn=turn: turned(turn, quality=100, subsampling=0), LOSSY)
        for turn in range(2, 9)
    },
}
GRAY: dict[str, tuple[Callable[[], bytes], int]] = {
    "png, gray": (lambda: saved(picture().convert("L"), "PNG"), LOSSLESS),
    "png, gray with alpha": (lambda: saved(cleared("LA"), "PNG"), LOSSLESS),
    "png, 16 bits": (lambda: deep("PNG"), LOSSLESS),
    "png, 16 bits with a transparent gray": (transparent_gray, LOSSLESS),
    "tiff, 16 bits": (lambda: deep("TIFF"), LOSSLESS),
    "tiff, 16 bits, big-endian": (big_endian_tiff, LOSSLESS),
    "pgm, 16 bits": (lambda: deep("PPM"), LOSSLESS),
    "jpeg, gray": (lambda: saved(picture().convert("L"), "JPEG", quality=100), LOSSY),
}


def packed(data: bytes, channels: int, folder) -> np.ndarray:
    """Pixels as `pack` prepares them."""
    (folder / "image.png").write_bytes(data)  # whatever it is: the suffix decides nothing
    image = open_source(str(folder), None).load(0, "L" if channels == 1 else "RGB")
    return np.asarray(prepare(image, SIDE)).reshape(SIDE, SIDE, channels)


def read(data: bytes, channels: int, resolution: int = SIDE) -> np.ndarray:
    """Pixels as the loader decodes them."""
    out = np.empty((resolution, resolution, channels), np.uint8)
    decode(memoryview(data), out)
    return out


def apart(a: np.ndarray, b: np.ndarray) -> int:
    return int(abs(a.astype(int) - b).max())


@pytest.mark.parametrize("name", [*COLOURED, *GRAY])
def test_a_picture_has_the_same_pixels_in_every_encoding_packed_and_read_from_a_shard(name, tmp_path):
    encode, tolerance = (COLOURED | GRAY)[name]
    data, original = encode(), picture() if name in COLOURED else picture().convert("L")
    for channels, mode in ((1, "L"), (3, "RGB")):
        expected = np.asarray(original.convert(mode)).reshape(SIDE, SIDE, channels)
        assert apart(packed(data, channels, tmp_path), expected) <= tolerance
        assert apart(read(data, channels), expected) <= tolerance
        assert apart(read(data, channels, 16), fit(expected, 16)) <= tolerance


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize(("background", "expected"), [("white", 255), ("#000000", 0), ("gray", 128)])
def test_what_is_transparent_shows_the_background(mode, background, expected):
    image = Image.new("RGBA", (16, 16), (255, 255, 255, 0)).convert(mode)
    if mode == "P":
        image.info["transparency"] = image.getpixel((0, 0))
    assert read_image(image, "RGB", background).getpixel((8, 8)) == (expected,) * 3


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(
    ("bits", "kind", "pixels", "clear", "expected"),
    [
        (1, 0, bytes([0b10000000]), [1], [255, 0]),
        (2, 0, bytes([0b01_10_0000]), [1], [255, 170]),
        (4, 0, bytes([0x5A]), [5], [255, 170]),
        (8, 0, bytes([90, 170]), [90], [255, 170]),
        (16, 0, struct.pack(">2H", 23000, 43690), [23000], [255, 170]),
        (8, 2, bytes([1, 2, 3, 170, 170, 170]), [1, 2, 3], [255, 170]),
        (16, 2, struct.pack(">6H", 300, 600, 900, *[43690] * 3), [300, 600, 900], [255, 170]),
    ],
)
def test_a_png_names_its_transparent_colour_in_bits_of_its_own(bits, kind, pixels, clear, expected):
    head = struct.pack(">IIBBBBB", 2, 1, bits, kind, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"tRNS", struct.pack(f">{len(clear)}H", *clear))]
    chunks += [(b"IDAT", zlib.compress(b"\0" + pixels)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)
    shown = np.asarray(read_image(io.BytesIO(data), "RGB", "white"))
    assert shown[0].tolist() == [[value] * 3 for value in expected]


@pytest.mark.parametrize(
    "encode",
    [
        lambda: saved(Image.fromarray(np.zeros((16, 16), np.int32)), "TIFF"),
        lambda: saved(Image.fromarray(np.zeros((16, 16), np.float32)), "TIFF"),
        lambda: saved(picture(), "EPS"),
        lambda: saved(picture(), "PDF"),
        lambda: saved(picture(), "TGA"),
        lambda: b"P6 4 4 255 " + bytes(10),
    ],
)
def test_numbers_of_no_known_range_and_other_formats_are_bad_images(encode, tmp_path):
    data = encode()
    with pytest.raises(DataError, match="cannot be decoded as an image"):
        read(data, 3, 8)
    with pytest.raises(DataError, match="cannot be decoded as an image"):
        packed(data, 3, tmp_path)


def test_every_format_is_one_that_pillow_has():
    Image.init()
    assert set(FORMATS) <= set(Image.OPEN)
    assert BACKGROUND == "white"


def test_a_photo_whose_resolution_is_nonsense_lies_upright(tmp_path):
    """EXIF with an XResolution of (−1, 0), which cannot be written again."""
    exif = Image.Exif()
    exif[ORIENTATION], exif[0x011A] = 3, 72.0
    data = saved(picture().rotate(180), "JPEG", quality=100, subsampling=0, exif=exif)
    rational = struct.pack(">II", 72, 1)
    assert rational in data
    data = data.replace(rational, struct.pack(">iI", -1, 0))
    expected = np.asarray(picture())
    assert apart(packed(data, 3, tmp_path), expected) <= LOSSY
    assert apart(read(data, 3), expected) <= LOSSY


DAMAGED = ["jpeg, orientation 6", "tiff, 16 bits", "png, turned", "webp", "gif", "jpeg, profile"]


@given(
    st.sampled_from(DAMAGED),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=12),
)
def test_whatever_is_damaged_is_an_image_or_a_data_error(name, changes):
    encode, _ = (COLOURED | GRAY)[name]
    data = bytearray(encode())
    for share, value in changes:
        data[int(share * min(600, len(data) - 1))] = value
    out = np.empty((8, 8, 3), np.uint8)
    with contextlib.suppress(DataError):
        decode(bytes(data), out)
    with contextlib.suppress(DataError):
        read_image(io.BytesIO(data), "RGB")
