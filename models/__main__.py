"""Count parameters: `python -m models --params FAMILY --resolution R [--width W]`."""

import argparse
import sys

import torch

import models
from models.layers import parameter_count

ABOUT = """Count the trainable parameters of a family's two networks. Settings that are not given are
those of its paper. Nothing is allocated: even the largest network takes a second."""


def main() -> int:
    """Parse, count, print; exit code 2 if the settings make no network."""
    parser = argparse.ArgumentParser(prog="python -m models", description=ABOUT)
    parser.add_argument("--params", required=True, choices=models.FAMILIES, metavar="FAMILY",
                        help=", ".join(models.FAMILIES))  # fmt: skip
    parser.add_argument("--resolution", type=int, required=True, help="pixels of a side")
    parser.add_argument(
        "--first-resolution",
        type=int,
        help="lowest rung of the ladder; default: the paper's, or a single rung",
    )
    parser.add_argument("--width", type=int, help="multiplies every channel table")
    parser.add_argument("--latents", type=int, help="length of z")
    parser.add_argument("--classes", type=int, help="number of labels; 0 for none")
    parser.add_argument("--channels", type=int, help="1 for gray images, 3 for RGB")
    parser.add_argument("--base", type=int, help="first size: 4, or 7 for 28 px and its doublings")
    parser.add_argument("--attention", type=int, help="resolution of self-attention; 0 for none")
    arguments = vars(parser.parse_args())
    family = arguments.pop("params")
    overrides = {name: value for name, value in arguments.items() if value is not None}
    settings = models.paper(family, arguments["resolution"])
    if "base" in overrides and "first_resolution" in settings:
        settings["first_resolution"] = overrides["base"]
    for name in ("classes", "attention"):
        if overrides.get(name) == 0:
            del overrides[name]
            settings.pop(name, None)
    try:
        with torch.device("meta"):
            networks = models.build(family, **(settings | overrides))
    except (ValueError, RuntimeError, OverflowError) as error:  # torch's, for numbers above 2⁶³
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, count in zip(("generator", "discriminator"), parameter_count(networks), strict=True):
        print(f"{name} {count}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
