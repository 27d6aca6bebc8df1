"""How well does each family draw? `python -m benchmarks.quality [FAMILY …]`, about ten minutes each.

Each family trains its small preset through `service.train` on Fashion-MNIST, or with `--colour` on a
folder of colour images. Each training has one worker, each core a training. 10,000 samples of the EMA,
with as many of each class as the images have, are compared with the 10,000 test images, or with the
held-out quarter of the folder, in features of EfficientNet-Lite0:
  SOURCE.FAMILY.SEED.fd                  Fréchet distance; SOURCE.real.fd is that of training images
  SOURCE.FAMILY.SEED.precision, .recall  by nearest neighbours
  SOURCE.FAMILY.SEED.modes               classes that a classifier of real images finds among the samples
A training of the same settings is not repeated; an interrupted one resumes.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from benchmarks.fashion import FOLDER, finished, images_of, keep, samples_of
from service import pack
from service.cli import Count, Options, Positional, Seed, Shown, parse, run_command
from service.config.yaml import load_preset
from service.data.index import class_counts, read_index
from service.errors import ServiceError
from service.metrics.classifier import Labelled, train_classes
from service.metrics.features import open_features
from service.metrics.frechet import frechet_distance, moments
from service.metrics.modes import modes
from service.metrics.prdc import prdc
from service.recording.pictures import GridLook, grid_png
from service.run.best import Trained, load
from service.storage import open_storage

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
SHAPES: dict[FamilyName, tuple[int, int]] = {"mnist-pggan": (28, 7)}
DEFAULT_SHAPE = (32, 4)
SAMPLES = 10_000
FEATURES = "efficientnet_lite0"
COLOUR_HELD_OUT, EVERY_ONE = 0.25, 0.999999
GRID_ROWS, GRID_COLUMNS = 8, 10


@dataclass(frozen=True)
class Result:
    """What one training came to. `minutes` are those of one core, summed over its starts."""

    source: str
    family: FamilyName
    seed: int
    images: int
    minutes: float
    fd: float
    precision: float
    recall: float
    modes: int
    modes_of: int
    real_fd: float


class QualityOptions(Options):
    """What to train, on which images, and where the results go."""

    families: Annotated[Positional[list[FamilyName]], Shown("FAMILY")] = Field(default=[])
    """dcgan, sagan, biggan, biggan-deep, progan, stylegan or mnist-pggan (default: all)"""
    seeds: Annotated[list[Seed], Shown("N")] = Field(default=[0])
    """seeds of the trainings; 0 is the one whose samples are shown"""
    jobs: Count = os.cpu_count() or 1
    """trainings at a time (default: one per core)"""
    colour: Path | None = None
    """folder of colour images with classes, as pack reads it, to train on instead of Fashion-MNIST"""
    out: Path = Path("runs/quality")
    """folder for the data, the runs and the results"""
    docs: Path = Path("docs")
    """folder for the page and the grids"""


@dataclass(frozen=True)
class Source:
    """Packed images for a family: those to train on, and those to compare with, all held out."""

    name: str
    training: Path
    test: Path
    resolution: int
    channels: int


@dataclass(frozen=True, eq=False)
class Real:
    """Features of real images with their labels: training images, and those to compare with."""

    training: Labelled
    test: Labelled


def main(arguments: Sequence[str]) -> None:
    """Parse, train and measure what is not finished, print, and write the page."""
    options = parse(QualityOptions, arguments, "benchmarks.quality", __doc__ or "")
    options.out.mkdir(parents=True, exist_ok=True)
    families = options.families or [*PRESETS]
    torch.set_num_threads(1)  # beside other trainings, more threads only wait for each other
    for result in _results(families, options):
        print("\n".join(_lines(result)), flush=True)
    _write_page(options.docs, _all_results(options.out))


def _results(families: Sequence[FamilyName], options: QualityOptions) -> Iterable[Result]:
    """Of each family and seed, in their order; `options.jobs` of them train at a time."""
    sources = {family: _source(family, options) for family in families}
    for source in sources.values():
        _real(source, options.out)  # once, before trainings that start together both want it

    def result(seed: int, family: FamilyName) -> Result:
        name = _name(sources[family].name, family, seed)
        known = finished(Result, options.out, name)
        if known:
            return known
        found = _train_and_measure(sources[family], family, seed, options)
        keep(options.out, name, found)
        return found

    cases = [(seed, family) for seed in options.seeds for family in families]
    with ThreadPoolExecutor(options.jobs) as threads:
        yield from threads.map(result, *zip(*cases, strict=True))


def _name(source: str, family: FamilyName, seed: int) -> str:
    """The name of a training's files: another one wherever its settings differ."""
    settings = json.dumps(load_preset(PRESETS[family]), sort_keys=True, default=str)
    return f"{source}-{family}-{seed}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"


def _source(family: FamilyName, options: QualityOptions) -> Source:
    resolution, base = SHAPES.get(family, DEFAULT_SHAPE)
    out, shape = options.out, ["--resolution", str(resolution), "--base", str(base)]
    if options.colour:
        name = options.colour.name
        data = out / f"{name}-{resolution}"
        held_out = ["--held-out", str(COLOUR_HELD_OUT)]
        pack.main([str(options.colour), str(data), "--channels", "rgb", *held_out, *shape])
        return Source(name, data, data, resolution, 3)
    training, test = out / f"fashion-{resolution}", out / f"fashion-test-{resolution}"
    gray = ["--channels", "gray", *shape]
    pack.main([str(FOLDER / "train-images-idx3-ubyte.gz"), str(training), *gray])
    every_one = ["--held-out", str(EVERY_ONE)]
    pack.main([str(FOLDER / "t10k-images-idx3-ubyte.gz"), str(test), *gray, *every_one])
    return Source("fashion", training, test, resolution, 1)


def _train_and_measure(source: Source, family: FamilyName, seed: int, options: QualityOptions) -> Result:
    run = options.out / _name(source.name, family, seed)
    minutes = _train(source, family, seed, run)
    trained, features = load(str(run)), open_features(FEATURES)
    real = _real(source, options.out)
    target = moments(real.test.inputs)
    samples = samples_of(trained, SAMPLES, _uneven_counts(source) if trained.shape.classes else None)
    measured = features(samples)
    neighbours = prdc(real.test.inputs, measured)
    classifier = train_classes(real.training, real.test)
    shown = modes(classifier(measured), real.training.labels)
    if seed == 0:
        _draw(trained, source, options.docs / "families" / f"{_picture(source.name, family)}.png")
    return Result(
        source.name,
        family,
        seed,
        trained.clock,
        minutes,
        frechet_distance(target, moments(measured)),
        neighbours.precision,
        neighbours.recall,
        shown.count,
        shown.of,
        frechet_distance(target, moments(real.training.inputs)),
    )


def _draw(trained: Trained, source: Source, file: Path) -> None:
    """A grid with one class per column."""
    file.parent.mkdir(parents=True, exist_ok=True)
    samples = samples_of(trained, GRID_ROWS * GRID_COLUMNS)
    file.write_bytes(grid_png(samples, GridLook(GRID_COLUMNS, source.resolution)))


def _uneven_counts(source: Source) -> NDArray[np.int64] | None:
    """How many images each class has; None if all have as many."""
    index = read_index(open_storage(str(source.training)))
    counts = np.array([count for _, count in class_counts(index.label, index.about.classes)])
    return None if len({*counts.tolist()}) == 1 else counts


def _train(source: Source, family: FamilyName, seed: int, run: Path) -> float:
    """Train; returns the minutes that it took, summed over all its starts."""
    file = run.with_name(f"{run.name}.minutes")
    before = float(file.read_text()) if file.exists() else 0.0
    start = time.monotonic()
    preset = load_preset(PRESETS[family])
    # not scored, so that the last checkpoint is measured, of as many images in each training
    settings = {
        "data.url": source.training,
        "run.dir": run,
        "run.seed": seed,
        "scale.workers": 1,
        "evaluation.every_images": "null",
    }
    if source.channels > 1:
        settings["model.channels"] = source.channels
        if preset["model"].get("classes"):
            index = read_index(open_storage(str(source.training)))
            settings["model.classes"] = len(index.about.classes)
    flags = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "service.train", "--preset", PRESETS[family], *flags]
    log = run.with_name(f"{run.name}.log")
    try:
        with log.open("a") as out:
            environment = os.environ | {"RAY_ADDRESS": "local"}
            subprocess.run(command, env=environment, stdout=out, stderr=out, check=True)
    except subprocess.CalledProcessError as error:
        raise ServiceError(f"a training failed: see {log}; run the same command to resume") from error
    finally:
        minutes = before + (time.monotonic() - start) / 60
        file.write_text(str(minutes))
    return minutes


def _real(source: Source, out: Path) -> Real:
    """Measured once for each source and resolution."""
    fingerprint = read_index(open_storage(str(source.training))).fingerprint()[:8]
    file = out / f"{source.name}-{source.resolution}-{fingerprint}.npz"
    if not file.exists():
        features, shape = open_features(FEATURES), (source.resolution, source.channels)
        training = images_of(source.training, *shape, held_out=False, most=SAMPLES)
        test = images_of(source.test, *shape, held_out=True, most=SAMPLES)
        part = file.with_suffix(".part.npz")
        np.savez(
            part,
            training=features(training.images),
            training_labels=training.labels,
            test=features(test.images),
            test_labels=test.labels,
        )
        part.rename(file)
    with np.load(file) as known:
        return Real(
            Labelled(known["training"], known["training_labels"]),
            Labelled(known["test"], known["test_labels"]),
        )


def _lines(result: Result) -> Iterator[str]:
    head = f"{result.source}.{result.family}.{result.seed}"
    yield f"{head}.fd {result.fd:.1f}"
    yield f"{head}.precision {result.precision:.3f}"
    yield f"{head}.recall {result.recall:.3f}"
    yield f"{head}.modes {result.modes}"
    yield f"{head}.minutes {result.minutes:.1f}"
    yield f"{result.source}.real.fd {result.real_fd:.1f}"


def _all_results(out: Path) -> list[Result]:
    """The finished trainings of the presets as they are now."""
    results = {file.stem: Result(**json.loads(file.read_text())) for file in sorted(out.glob("*.json"))}
    return [r for name, r in results.items() if name == _name(r.source, r.family, r.seed)]


def _picture(source: str, family: FamilyName) -> str:
    return family if source == "fashion" else f"{family}-{source}"


HEAD = (
    f"| images | family | seed | shown | minutes | fd | precision | recall | classes |\n|{' --- |' * 9}"
)


def _row(result: Result) -> str:
    return (
        f"| {result.source} | {result.family} | {result.seed} | {result.images:,} | {result.minutes:.1f}"
        f" | {result.fd:.0f} | {result.precision:.2f} | {result.recall:.2f}"
        f" | {result.modes} of {result.modes_of} |"
    )


def _write_page(docs: Path, results: list[Result]) -> None:
    places = {family: place for place, family in enumerate(PRESETS)}
    results = sorted(
        results,
        key=lambda one: (one.source != "fashion", one.source, places[one.family], one.seed),
    )
    floors = {result.source: result.real_fd for result in results}
    pictures = [_picture(result.source, result.family) for result in results if result.seed == 0]
    page = docs / "families.md"
    # what stands below the grids explains, and stays
    _, heading, others = page.read_text().partition(OTHERS) if page.exists() else ("", "", "")
    text = PAGE.format(
        table="\n".join([HEAD, *map(_row, results)]),
        floors=", ".join(f"{floor:.0f} for {source}" for source, floor in floors.items()),
        grids="\n".join(f"### {name}\n\n![{name}](families/{name}.png)\n" for name in pictures),
    )
    page.write_text(text + heading + others)


OTHERS = "\n## What "

PAGE = """# The families on small images

Written by `python -m benchmarks.quality`: each family trains its small preset with one Ray Train worker
on one CPU core. With the preset's own two workers it takes about half as long. Minutes are of that
machine, with all that ran on it.

{table}

`fd` is the Fréchet distance of 10,000 samples of the EMA, with as many of each class as the images have,
on features of EfficientNet-Lite0; lower is better. It compares with the 10,000 test images of
Fashion-MNIST, or with the quarter of other images that is held out. Training images themselves have
{floors}.

Precision and recall are by nearest neighbours, and *classes* are those that a classifier finds among the
samples. How they are measured, and what they compare with, is said in [scores](scores.md).

## Grids

They show one class per column where the preset has classes, and are of seed 0. No sample was picked by
hand.

{grids}"""


if __name__ == "__main__":
    run_command(main)
