"""One way from a file's bytes to a picture as people see it: for packing, for shards of other tools.

The picture is the first frame, upright, in sRGB with 8 bits, over a background where it is transparent.
"""

import contextlib
import functools
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from service.errors import DataError

Mode = Literal["L", "RGB"]
File = Path | io.BytesIO | Image.Image
"""A file, its bytes, or a picture that lies in memory."""

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
"""Pillow's names of the formats that are read, whatever a file's suffix says.

The others are never tried: opening an EPS, for one, would start Ghostscript.
"""
SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"}
    | {".ppm", ".pgm", ".pbm"}
)
"""Suffixes, in lower case, of files in FORMATS."""
BACKGROUND = "white"
LARGEST_PIXELS = 1 << 26

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings a picture upright, by its orientation in EXIF."""
_SRGB = ImageCms.createProfile("sRGB")
_GRAY_STEPS = {"L;2": 85, "L;4": 17}  # from one gray of 2 or 4 bits to the next, in 8
_TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")


@contextlib.contextmanager
def one_image() -> Iterator[None]:
    """Whatever goes wrong inside is one image's fault: a DataError that says what.

    Decoders raise far more than OSError on damaged files: `struct.error`, TypeError and others.
    """
    try:
        yield
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"cannot be decoded as an image (none of {', '.join(FORMATS)})") from error
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"cannot be decoded as an image ({reason})") from error


def read_image(
    file: File, mode: Mode, background: str = BACKGROUND, at_least: int | None = None
) -> Image.Image:
    """The picture in a file, in gray or RGB.

    A JPEG may come smaller, each side `at_least` so long. DataError if the file is damaged, in none of
    FORMATS, larger than LARGEST_PIXELS, or of numbers whose range nothing tells (32 bits, floats).
    """
    with one_image(), _open(file) as image:
        check_size(*image.size)
        if at_least is not None and image.format == "JPEG":
            image.draft(None, (at_least, at_least))
        _clear_in_8_bits(image)
        image.load()
        # EXIF and profile are read before a conversion loses them
        turn, profile = orientation(image), image.info.get("icc_profile")
        flat = _over(background, _in_srgb(_in_8_bits(image), profile))
        return upright(flat.convert(mode), turn)


def header(file: File) -> tuple[str, int, int]:
    """Mode, width and height of the picture in a file, upright; nothing is decoded.

    DataError if it cannot be opened, or is larger than LARGEST_PIXELS.
    """
    with one_image(), _open(file) as image:
        check_size(*image.size)
        lies = orientation(image) >= 5
        width, height = reversed(image.size) if lies else image.size
        return image.mode, width, height


def check_size(width: int, height: int) -> None:
    """DataError if an image would take too much memory and time."""
    if width * height > LARGEST_PIXELS:
        raise DataError(f"the image is {width}×{height}, above the limit of {LARGEST_PIXELS} pixels")


def orientation(image: Image.Image) -> int:
    """How the picture lies, 1 … 8 by EXIF or XMP; 1, upright, where neither says anything valid."""
    value = image.getexif().get(ExifTags.Base.Orientation)
    return value if value in _TURNS else 1


def upright(image: Image.Image, turn: int) -> Image.Image:
    """The picture that lies as `turn` says, upright."""
    return image.transpose(_TURNS[turn]) if turn in _TURNS else image


@functools.lru_cache(maxsize=64)
def is_srgb(profile: bytes | None) -> bool:
    """Whether colours with this ICC profile can be taken as they are: it is none, sRGB's, or damaged."""
    if not profile:
        return True
    try:
        return "srgb" in ImageCms.getProfileDescription(_profile(profile)).lower()
    except (ImageCms.PyCMSError, OSError):
        return True


def _open(file: File) -> Image.Image:
    return file if isinstance(file, Image.Image) else Image.open(file, formats=FORMATS)


def _clear_in_8_bits(image: Image.Image) -> None:
    """Give the colour that a PNG calls transparent, in the file's own bits, as Pillow decodes pixels.

    Of 16 bits Pillow keeps the upper 8, so colours that differ below count as one.
    """
    clear = image.info.get("transparency")
    tiles = getattr(image, "tile", None)  # of an image that is not decoded yet
    coding = tiles[0].args if image.format == "PNG" and tiles else None
    if isinstance(clear, int) and coding in _GRAY_STEPS:
        image.info["transparency"] = clear * _GRAY_STEPS[coding]
    if isinstance(clear, tuple) and coding == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in clear)


def _in_8_bits(image: Image.Image) -> Image.Image:
    """The image with 8 bits a channel; ValueError if nothing says which number is white."""
    # Pillow scales a PGM of more than 8 bits to 0 … 65535, in mode I
    if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM"):
        values = np.asarray(image).astype(np.uint32)
        scaled = Image.fromarray(((values + 128) // 257).astype(np.uint8))
        clear = image.info.get("transparency")
        if clear is not None:
            scaled.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
        return scaled
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of type {image.mode} have no known range")
    return image


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """The image with its colours by the profile; as it is if the profile is damaged, as viewers do."""
    if profile is None or is_srgb(profile):
        return image
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    transform = _transform(profile, image.mode)
    if transform is None:
        return image
    return ImageCms.applyTransform(image, transform) or image  # alpha stays as it is


@functools.lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From the profile's colours to sRGB; None if the profile is not for this mode."""
    result = "RGBA" if mode == "RGBA" else "RGB"
    flags = ImageCms.Flags.NOCACHE  # threads share it
    try:
        return ImageCms.buildTransform(_profile(profile), _SRGB, mode, result, flags=flags)
    except (ImageCms.PyCMSError, OSError):
        return None


def _profile(profile: bytes) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(io.BytesIO(profile))


def _over(background: str, image: Image.Image) -> Image.Image:
    """The image over the background where it is transparent."""
    if image.mode not in _TRANSPARENT and "transparency" not in image.info:
        return image
    opaque = Image.new("RGB", image.size, background)
    image = image.convert("RGBA")
    opaque.paste(image, mask=image)
    return opaque
