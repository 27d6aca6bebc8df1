"""Does each family learn? Train all on Fashion-MNIST: `python -m benchmarks.families [FAMILY …]`.

Each family trains its small preset through `service.train`. Its score is the Fréchet distance of its
EMA's samples to held-out images. It has learnt something if other held-out images, shrunk to 4 px, are
farther away. Finished families are not trained again; an interrupted one resumes.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from benchmarks.fashion import FOLDER, finished, images_of, keep, samples_of
from service import pack
from service.cli import Options, Positional, Shown, parse, run_command
from service.errors import ServiceError
from service.metrics.features import open_features
from service.metrics.frechet import frechet_distance, moments
from service.recording.pictures import GridLook, Pixels, grid_png
from service.run.best import load

SOURCE = str(FOLDER / "train-images-idx3-ubyte.gz")
FamilyName = Literal["dcgan", "sagan", "biggan", "biggan-deep", "progan", "stylegan", "mnist-pggan"]
PRESETS: dict[FamilyName, str] = {
    "dcgan": "dcgan-fashion",
    "sagan": "sagan-fashion",
    "biggan": "biggan-fashion",
    "biggan-deep": "biggan-deep-fashion",
    "progan": "progan-fashion",
    "stylegan": "stylegan-fashion",
    "mnist-pggan": "mnist-pggan",
}
SHAPES = {"mnist-pggan": (28, 7)}
DEFAULT_SHAPE = (32, 4)
FEATURES = "efficientnet_lite0"
SCORE = f"fd_{FEATURES}"
BLOB_PIXELS = 4
GRID_ROWS, GRID_COLUMNS = 8, 10


@dataclass(frozen=True)
class Result:
    """A family's result. `minutes` are wall-clock time, from the start of the command to its end."""

    family: str
    preset: str
    images: int
    minutes: float
    distance: float
    blob_distance: float
    real_distance: float

    @property
    def has_learnt(self) -> bool:
        """Whether its samples are nearer to held-out images than blobs of such images are."""
        return self.distance < self.blob_distance


class FamiliesOptions(Options):
    """What to train, on which images, and where the results go."""

    families: Annotated[Positional[list[FamilyName]], Shown("FAMILY")] = Field(default=[])
    """dcgan, sagan, biggan, biggan-deep, progan, stylegan or mnist-pggan (default: all)"""
    source: str = SOURCE
    """IDX file of images"""
    out: Path = Path("runs/families")
    """folder for the data and the runs"""
    docs: Path = Path("docs")
    """folder for the page and the grids"""


def main(arguments: Sequence[str]) -> None:
    """Parse, train and score the unfinished families, write the table and the grids."""
    options = parse(FamiliesOptions, arguments, "benchmarks.families", __doc__ or "")
    for family in options.families or PRESETS:
        print(
            _row(finished(Result, options.out, family) or _train_and_score(family, options)), flush=True
        )
    results = [result for family in PRESETS if (result := finished(Result, options.out, family))]
    _write_page(options.docs, results)
    failed = [result.family for result in results if not result.has_learnt]
    if failed:
        raise ServiceError(f"no better than blobs: {', '.join(failed)}")


def _train_and_score(family: FamilyName, options: FamiliesOptions) -> Result:
    resolution, base = SHAPES.get(family, DEFAULT_SHAPE)
    data = options.out / f"data-{resolution}"
    pack.main([options.source, str(data), "--channels", "gray", "--resolution", str(resolution),
               "--base", str(base)])  # fmt: skip
    run = options.out / family
    minutes = _train(PRESETS[family], data, run)
    trained = load(str(run))
    held_out = images_of(data, resolution)
    reference, others = held_out[0::2], held_out[1::2]
    features = open_features(FEATURES)

    def distance(images: Pixels) -> float:
        return frechet_distance(target, moments(features(images)))

    target = moments(features(reference))
    samples = samples_of(trained, len(others))
    shown = samples[: GRID_ROWS * GRID_COLUMNS]
    (options.docs / "families").mkdir(parents=True, exist_ok=True)
    grid = grid_png(shown, GridLook(GRID_COLUMNS, resolution))
    (options.docs / "families" / f"{family}.png").write_bytes(grid)
    result = Result(
        family,
        PRESETS[family],
        trained.clock,
        minutes,
        distance(samples),
        distance(_blobs(others)),
        distance(others),
    )
    keep(options.out, family, result)
    return result


def _train(preset: str, data: Path, run: Path) -> float:
    """Train; returns the minutes that it took, summed over all its starts."""
    file = run.with_suffix(".minutes")
    before = float(file.read_text()) if file.exists() else 0.0
    start = time.monotonic()
    command = [sys.executable, "-m", "service.train", "--preset", preset]
    try:
        subprocess.run(
            [*command, "--data.url", str(data), "--run.dir", str(run)],
            env=os.environ | {"RAY_ADDRESS": "local"},
            check=True,
        )
    except subprocess.CalledProcessError as error:
        raise ServiceError(f"{preset}: the training failed; run the same command to resume") from error
    finally:
        minutes = before + (time.monotonic() - start) / 60
        file.write_text(str(minutes))
    return minutes


def _blobs(images: Pixels) -> Pixels:
    """The images shrunk to 4 px and smoothly enlarged again: right shades in the right places."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    small = F.adaptive_avg_pool2d(pixels, BLOB_PIXELS)
    blobs = F.interpolate(small, size=images.shape[1], mode="bicubic").round().clamp(0, 255)
    return blobs.byte().permute(0, 2, 3, 1).numpy()


HEAD = f"| family | preset | images | minutes | {SCORE} | blobs | real |\n|{' --- |' * 7}"


def _row(result: Result) -> str:
    return (
        f"| {result.family} | `{result.preset}` | {result.images:,} | {result.minutes:.1f}"
        f" | {result.distance:.0f} | {result.blob_distance:.0f} | {result.real_distance:.0f} |"
    )


def _write_page(docs: Path, results: list[Result]) -> None:
    table = "\n".join([HEAD, *map(_row, results)])
    grids = "\n".join(
        f"## {result.family}\n\n![{result.family}](families/{result.family}.png)\n" for result in results
    )
    (docs / "families.md").write_text(PAGE.format(table=table, grids=grids, name=SCORE))


PAGE = """# The families on Fashion-MNIST

Written by `python -m benchmarks.families`: each family trains its small preset on two CPU cores, with
two Ray Train workers of one thread each. The presets are made to take less than ten minutes.

{table}

`{name}` is the Fréchet distance of the EMA's samples to one half of the held-out images, on
features of EfficientNet-Lite0; lower is better. There are as many samples as the other half has images.
*Blobs* is the distance of that other half after shrinking to 4 px and enlarging again. *Real* is its
distance as it is, the best that so few images can reach. Distances of few samples compare with each
other, but not with published FIDs.

The grids show one class per column where the preset has classes. No sample was picked by hand.

{grids}"""


if __name__ == "__main__":
    run_command(main)
