"""Pictures for people: grids, labelled sheets and figures as PNG, animations as WebP or GIF."""

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAP_PIXELS = 2
LEAST_SHOWN_PIXELS = 32
"""The side to which smaller images of a grid are enlarged."""
CAPTION_PIXELS = 16
LONGEST_CAPTION_PIXELS = 120
MARGIN_PIXELS = 64
FIGURE_DPI = 110
ANIMATIONS = {".webp": "WEBP", ".gif": "GIF"}

FOLDER = "pictures"
_GRID = re.compile(rf"{FOLDER}/grid-(\d+)(?:-(\d+))?\.png")

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class GridLook:
    """How a grid is drawn: its columns, the side that images are enlarged to, what stands over them."""

    columns: int
    pixels: int
    captions: tuple[str, ...] = ()


def grid_key(clock: int, attempt: int) -> str:
    """Key of the grid at a clock; each attempt after a rewind has its own grids."""
    return f"{FOLDER}/grid-{clock:012d}{f'-{attempt}' if attempt else ''}.png"


def latest_grids(keys: Iterable[str]) -> list[tuple[int, str]]:
    """(clock, key) of a run's grids, by clock; the last attempt counts."""
    latest: dict[int, tuple[int, str]] = {}
    for key in keys:
        if match := _GRID.fullmatch(key):
            clock, attempt = int(match[1]), int(match[2] or 0)
            latest[clock] = max(latest.get(clock, (attempt, key)), (attempt, key))
    return [(clock, key) for clock, (_, key) in sorted(latest.items())]


def grid(images: Pixels, columns: int, pixels: int) -> Pixels:
    """uint8 [h, w, c] of images [n, r, r, c] row by row, `columns` wide, 2 px apart on black.

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
    return sheet


def grid_png(images: Pixels, look: GridLook) -> bytes:
    """A `grid` as PNG, `headed` by its captions, if there are any."""
    sheet = grid(images, look.columns, look.pixels)
    return png(headed(sheet, look.captions) if any(look.captions) else sheet)


def headed(sheet: Pixels, captions: Sequence[str]) -> Pixels:
    """A sheet uint8 [h, w, c] with a caption over each column, read upwards if one is wider than that.

    Each is cut to LONGEST_CAPTION_PIXELS.
    """
    font = ImageFont.load_default()
    width = (sheet.shape[1] + GAP_PIXELS) // len(captions)
    texts = [_cut(text, font) for text in captions]
    longest = max(int(font.getlength(text)) + 4 for text in texts)
    if longest <= width:
        return labelled(sheet, texts)
    # written on the strip lying on its side
    strip = np.zeros((sheet.shape[1], longest, sheet.shape[2]), np.uint8)
    image = _to_image(strip)
    draw = ImageDraw.Draw(image)
    for i, text in enumerate(texts):
        draw.text((2, i * width + (width - CAPTION_PIXELS) // 2), text, _white(sheet), font)
    upwards = np.rot90(np.asarray(image).reshape(strip.shape))
    return np.concatenate([upwards, sheet])


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text, or as much of its beginning as fits, with an ellipsis."""
    if font.getlength(text) <= LONGEST_CAPTION_PIXELS:
        return text
    while text and font.getlength(f"{text}…") > LONGEST_CAPTION_PIXELS:
        text = text[:-1]
    return f"{text}…"


def _white(sheet: Pixels) -> int | tuple[int, ...]:
    return 255 if sheet.shape[2] == 1 else (255,) * sheet.shape[2]


def labelled(sheet: Pixels, columns: Sequence[str] = (), rows: Sequence[str] = ()) -> Pixels:
    """A sheet uint8 [h, w, c] with a caption over each column and one left of each row.

    It becomes wider if the last caption needs it.
    """
    top, left = CAPTION_PIXELS if columns else 0, MARGIN_PIXELS if rows else 0
    height, width, channels = sheet.shape
    font = ImageFont.load_default()
    needed = left
    if columns:
        last = (len(columns) - 1) * (width + GAP_PIXELS) // len(columns)
        needed += last + int(font.getlength(columns[-1])) + 4
    canvas = np.zeros((top + height, max(left + width, needed), channels), np.uint8)
    canvas[top:, left : left + width] = sheet
    image = _to_image(canvas)
    draw = ImageDraw.Draw(image)
    white = _white(sheet)
    for i, text in enumerate(columns):
        draw.text((left + i * (width + GAP_PIXELS) // len(columns) + 2, 2), text, white, font)
    for i, text in enumerate(rows):
        draw.text((2, top + i * (height + GAP_PIXELS) // len(rows) + 2), text, white, font)
    return np.asarray(image).reshape(canvas.shape)


def png(sheet: Pixels) -> bytes:
    """uint8 [h, w, c] as PNG."""
    return _save([sheet], "PNG")


def figure_png(figure: "Figure") -> bytes:
    """A figure of matplotlib's as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=FIGURE_DPI)
    return buffer.getvalue()


def animation(frames: Sequence[Pixels], suffix: str, frame_ms: int) -> bytes:
    """Frames uint8 [h, w, c] of one size as an endless animation, .webp (lossless) or .gif."""
    options = {"save_all": True, "duration": frame_ms, "loop": 0}
    if suffix == ".webp":
        options["lossless"] = True
    return _save(frames, ANIMATIONS[suffix], **options)


def _save(frames: Sequence[Pixels], kind: str, **options: object) -> bytes:
    first, *rest = (_to_image(frame) for frame in frames)
    buffer = io.BytesIO()
    if rest:
        options["append_images"] = rest
    first.save(buffer, kind, **options)
    return buffer.getvalue()


def _to_image(sheet: Pixels) -> Image.Image:
    return Image.fromarray(sheet.squeeze(2) if sheet.shape[2] == 1 else sheet)
