"""Does augmentation help with few images? `python -m benchmarks.few_images [VARIANT …]`, an hour.

A small DCGAN is trained on 1,000 images of Fashion-MNIST, 100 of each class, as they are and augmented,
for as many images shown. Its score is the Fréchet distance of the EMA's samples to the 10,000 test
images. Finished variants are not trained again; an interrupted one resumes.
"""

import gzip
import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import mlflow
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from benchmarks.fashion import FOLDER, finished, images_of, keep, samples_of
from service import pack
from service.cli import Options, Positional, Shown, parse, run_command
from service.data.sources import read_idx
from service.errors import ServiceError
from service.metrics.feature_set import FeatureSet
from service.metrics.features import open_features
from service.metrics.frechet import Moments, frechet_distance, moments
from service.metrics.reference import read_reference, write_reference
from service.recording.pictures import GridLook, grid_png
from service.run.best import load

Variant = Literal["plain", "ada", "diffaugment"]
VARIANTS: dict[Variant, dict[str, str]] = {
    "plain": {},
    "ada": {"training.augment": "ada", "training.augment_images": "50000"},
    "diffaugment": {"training.augment": "diffaugment"},
}
# Nothing is scored, so that both are compared at the end, not each at its best.
TRAINING = {  # with rates and batches of its own, so that its figures outlive a change of the preset
    "phases": '[{"resolution": 32, "hold_images": 600000, "batch": 64}]',
    "training.lr_generator": "2e-4",
    "training.lr_discriminator": "2e-4",
    "data.window": "8",
    "collapse.action": "alert",
    "evaluation.every_images": "null",
}
PER_CLASS, CLASSES, RESOLUTION = 100, 10, 32
HELD_OUT, EVERY_ONE = 0.2, 0.999999
FEATURES = "efficientnet_lite0"
SCORE = f"fd_{FEATURES}"
LAST_LOOKS = 10
GRID_ROWS, GRID_COLUMNS = 4, 10


@dataclass(frozen=True)
class Result:
    """A variant's result; the accuracies are D's on real images, trained on and held out."""

    variant: str
    images: int
    distance: float
    accuracy: float
    accuracy_held_out: float
    augment_p: float


class FewImagesOptions(Options):
    """What to train, and where the results go."""

    variants: Annotated[Positional[list[Variant]], Shown("VARIANT")] = Field(default=[])
    """plain, ada or diffaugment (default: all)"""
    out: Path = Path("runs/few-images")
    """folder for the data and the runs"""
    docs: Path = Path("docs")
    """folder for the page and the grids"""


def main(arguments: Sequence[str]) -> None:
    """Parse, train and score the unfinished variants, write the table and the grids."""
    options = parse(FewImagesOptions, arguments, "benchmarks.few_images", __doc__ or "")
    options.out.mkdir(parents=True, exist_ok=True)
    for variant in options.variants or VARIANTS:
        if not finished(Result, options.out, variant):
            _train_and_score(variant, options)
    results = [result for variant in VARIANTS if (result := finished(Result, options.out, variant))]
    for line in _lines(results):
        print(line)
    _write_page(options.docs, results)


def _train_and_score(variant: Variant, options: FewImagesOptions) -> None:
    data, run = _few(options.out), options.out / variant
    settings = TRAINING | VARIANTS[variant] | {"data.url": str(data), "run.dir": str(run)}
    flags = [part for key, value in settings.items() for part in (f"--{key}", value)]
    command = [sys.executable, "-m", "service.train", "--preset", "dcgan-fashion", *flags]
    try:
        subprocess.run(command, env=os.environ | {"RAY_ADDRESS": "local"}, check=True)
    except subprocess.CalledProcessError as error:
        raise ServiceError(f"{variant}: the training failed; run the same command to resume") from error
    features = open_features(FEATURES)
    trained, target = load(str(run)), _target(options.out, features)
    samples = samples_of(trained, target.count)
    distance = frechet_distance(target, moments(features(samples)))
    (options.docs / "few-images").mkdir(parents=True, exist_ok=True)
    grid = grid_png(samples[: GRID_ROWS * GRID_COLUMNS], GridLook(GRID_COLUMNS, RESOLUTION))
    (options.docs / "few-images" / f"{variant}.png").write_bytes(grid)
    result = Result(variant, trained.clock, distance, *_last_looks(run))
    keep(options.out, variant, result)


def _few(out: Path) -> Path:
    """The first images of each class, packed."""
    files = [FOLDER / f"train-{kind}.gz" for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    images, labels = (read_idx(file) for file in files)
    kept = np.sort(np.concatenate([np.flatnonzero(labels == c)[:PER_CLASS] for c in range(CLASSES)]))
    for file, array in zip(files, (images, labels), strict=True):
        _write_idx(out / file.name, array[kept])
    return _packed(out / files[0].name, out / "data", HELD_OUT)


def _target(out: Path, features: FeatureSet) -> Moments:
    """The moments of all test images, measured once."""
    file = out / "test.npz"
    if not file.exists():
        test = _packed(FOLDER / "t10k-images-idx3-ubyte.gz", out / "test", EVERY_ONE)
        write_reference(
            file, moments(features(images_of(test, RESOLUTION).images)), features, RESOLUTION
        )
    return read_reference(str(file), features).moments


def _packed(source: Path, destination: Path, held_out: float) -> Path:
    pack.main(
        [str(source), str(destination), "--channels", "gray", "--resolution", str(RESOLUTION),
         "--held-out", str(held_out)]
    )  # fmt: skip
    return destination


def _write_idx(file: Path, array: NDArray[np.uint8]) -> None:
    head = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    file.write_bytes(gzip.compress(head + array.tobytes(), mtime=0))


def _last_looks(run: Path) -> tuple[float, ...]:
    """Means over the last looks of both accuracies and of the chance of an augmentation."""
    client = mlflow.MlflowClient(f"sqlite:///{run}/mlflow.db")
    experiment = client.get_experiment_by_name("gan-training")
    (recorded,) = client.search_runs([experiment.experiment_id])
    means = []
    for metric in ("accuracy_real", "accuracy_held_out", "augment_p"):
        points = client.get_metric_history(recorded.info.run_id, metric)
        last = sorted(points, key=lambda point: point.step)[-LAST_LOOKS:]
        means.append(float(np.mean([point.value for point in last])))
    return tuple(means)


def _lines(results: Sequence[Result]) -> Iterator[str]:
    for result in results:
        yield f"{result.variant}_fd {result.distance:.1f}"
        yield f"{result.variant}_gap {result.accuracy - result.accuracy_held_out:.3f}"
    distances = {result.variant: result.distance for result in results}
    for variant in ("ada", "diffaugment"):
        if {"plain", variant} <= distances.keys():
            yield f"{variant}_ratio {distances[variant] / distances['plain']:.3f}"


HEAD = f"| images | {SCORE} | D says real: trained on | held out | chance at the end |\n|{' --- |' * 5}"


def _row(result: Result) -> str:
    return (
        f"| {result.variant} | {result.distance:.0f} | {result.accuracy:.0%}"
        f" | {result.accuracy_held_out:.0%} | {result.augment_p:.2f} |"
    )


def _write_page(docs: Path, results: list[Result]) -> None:
    grids = "\n".join(
        f"### {result.variant}\n\n![{result.variant}](few-images/{result.variant}.png)\n"
        for result in results
    )
    measured = UNMEASURED
    if results:
        table = "\n".join([HEAD, *map(_row, results)])
        measured = MEASURED.format(table=table, grids=grids, name=SCORE, shown=results[0].images)
    (docs / "few-images.md").write_text(PAGE + measured)


PAGE = """# Few images

With few images, the discriminator learns them by heart: it takes those that it trains on for real,
and others not, and the generator gets worse from then on. `training.augment` changes at random what
the discriminator sees, real and generated images alike, in both networks' steps, so that the
generator does not learn the changes.

| setting | what it does |
| --- | --- |
| `training.augment: ada` | each change with a chance that is driven, see below |
| `training.augment: diffaugment` | all changes, always |
| `training.augment_p` | a fixed chance, or a schedule |

```sh
python -m service.train --preset dcgan-fashion --data.url data/few --run.dir runs/few \\
    --training.augment ada
```

ADA (Karras et al. 2020) flips, turns, moves, stretches and recolours images. It keeps the mean sign of
the logits of real images at `training.augment_target`: where it is higher, the discriminator is too sure
of its training images, and the chance rises; where it is lower, the chance falls. Losses whose logits
have no zero, such as `relativistic`, need `training.augment_p`. DiffAugment (Zhao et al. 2020) shades,
moves and blanks a part of every image.

The curve `augment_p` shows the chance. It is part of the state: a resumed run goes on with the same
one. After a rewind because the discriminator overfits (`d_overfit`), images are augmented more. ADA's
target becomes a fifth lower; a fixed chance goes half of the way to 1, 0.6 to 0.8, say.
`collapse.overfit_amendment` names another change.
"""

UNMEASURED = """
What it gains has not been measured here yet: `python -m benchmarks.few_images` will.
"""

MEASURED = """
## Measured

`python -m benchmarks.few_images` trains a small DCGAN at 32 px on 1,000 images of Fashion-MNIST,
{shown:,} images shown each. `{name}` is the Fréchet distance of 10,000 samples of the
EMA to the 10,000 test images; lower is better, and what training images themselves have is said in
[families](families.md).

{table}

How often D takes real images for real is that of its last batches: images that it trains on as it sees
them, so augmented ones with `ada`, and held-out images as they are.

{grids}"""


if __name__ == "__main__":
    run_command(main)
