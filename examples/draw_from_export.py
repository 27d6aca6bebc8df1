"""Draw a grid from an exported generator, one class a column.

It needs torch, safetensors, numpy and pillow, and nothing else of the service than what it imports.

python -m service.export runs/digits exported/digits
python examples/draw_from_export.py exported/digits/generator.safetensors digits.png
"""

import argparse
from pathlib import Path

import torch
from PIL import Image

from service.errors import DataError
from service.pretrained import load_exported

ROWS, COLUMNS = 8, 10


def main(weights: str, out: str) -> None:
    """Load the file, draw ROWS images of each class, and save them as one picture."""
    exported = load_exported(weights)
    shape = exported.shape
    columns = shape.classes or COLUMNS
    latents = torch.randn(ROWS * columns, shape.latents, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(ROWS * columns) % columns
    with torch.no_grad():
        images = exported.generator(latents, labels, exported.stage)  # [n, c, r, r] in [-1, 1]
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte()
    rows = [torch.cat([*row], dim=2) for row in pixels.split(columns)]  # side by side
    sheet = torch.cat(rows, dim=1).permute(1, 2, 0)  # one below the other: [h, w, c]
    Image.fromarray(sheet.squeeze(2).numpy()).save(out)
    print(f"{out}: {ROWS} × {columns} images of {exported.stage.resolution} px")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("weights", help="the generator.safetensors of an export")
    parser.add_argument("out", help="the picture to write, such as digits.png")
    options = parser.parse_args()
    if Path(options.out).suffix.lower() not in Image.registered_extensions():
        parser.error(f"{options.out}: no picture's name; end it with .png")
    try:
        main(options.weights, options.out)
    except (DataError, OSError) as error:
        parser.error(str(error))
