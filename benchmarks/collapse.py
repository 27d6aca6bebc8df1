"""Are collapses detected in time, and undone? `python -m benchmarks.collapse [NAME …]`.

Twelve runs train on real digits and on Fashion-MNIST. Half of them are healthy; half are driven to
collapse, each in its own way. The detector's thresholds were set on other ways and other seeds. Each
run trains through `service.train` with collapse.action alert, so that it goes on after a collapse.

Two measures of each checkpoint that the detector does not use decide whether a run collapsed: the
Fréchet distance of the EMA's samples to held-out images, and the number of classes that a classifier
finds among the samples. A run has collapsed if its last distance is at least twice its best or at least
the first distance of its healthy twin, or if it has lost three or more of its classes. Collapsed runs
that were detected train once more with collapse.action rewind. Ends with lines `name value count`:

  recall        share of the collapsed runs that were detected
  early         share of those that were detected before the distance doubled from its best
  false_alarms  number of the other runs that were judged collapsed
  rescued       share of the detected runs that recovered with rewinds

Results are stored by their settings: an interrupted benchmark resumes where it stopped.
"""

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from pydantic import Field, field_validator
from sklearn.linear_model import LogisticRegression

from service import pack
from service.cli import Count, Options, Positional, parse, run_command
from service.config.yaml import load_preset
from service.data.dataset import Batch, Dataset, Request, read
from service.data.index import read_index
from service.data.order import Order
from service.engine.sampler import Sampler
from service.errors import ServiceError
from service.metrics.feature_set import FeatureSet
from service.metrics.features import open_features
from service.metrics.frechet import Moments, frechet_distance, moments
from service.random.draws import Draws
from service.recording.pictures import GridLook, grid_png
from service.run import commits
from service.run.best import load
from service.storage import open_storage

FASHION = "/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz"
IMAGES, LOOK_EVERY, SAVE_EVERY = 76_800, 2_560, 7_680
SAMPLES, CLASSES = 500, 10
HELD_OUT = 0.3  # of the images, so that there are enough to compare with
FOUND_SHARE = 0.03  # of the samples; with even shares a class has 0.1
MISSING_CLASSES = 3
FALLEN = 2.0
BATCH = 128
RATES = {  # the presets' own are for batches of 32
    "dcgan-fashion": {"lr_generator": 2e-4, "lr_discriminator": 2e-4},
    "progan-fashion": {"lr_generator": 2e-3, "lr_discriminator": 2e-3},
    "stylegan-fashion": {
        "lr_generator": 2e-3, "lr_discriminator": 2e-3, "r1": 1, "style_mixing": 0.9,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A run: a preset with changes; `twin` is the healthy run to compare it with."""

    name: str
    preset: str
    seed: int
    means: str = ""
    twin: str = ""
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    nan_at: int = 0

    @property
    def resolution(self) -> int:
        """Pixels of a side."""
        return 16 if self.preset.startswith("dcgan") else 8

    def config(self, data: Path, run: Path, action: str) -> dict[str, Any]:
        """The whole configuration, as `--config` takes it."""
        if self.preset == "digits":  # that preset's own network ends at 16 px
            values = load_preset("fashion")
            values["training"] |= {"lr_generator": 5e-4, "lr_discriminator": 5e-4}
            values["training"] |= {"ema_half_life_images": 5000}
        else:
            values = load_preset(self.preset)
            values["training"] |= RATES.get(self.preset, {})
        values["run"] = {"dir": str(run), "seed": self.seed, "images": IMAGES}
        # the networks are those of 32 px; the rungs above the first are never reached
        rungs = [r for r in (8, 16, 32) if r >= self.resolution]
        values["phases"] = [{"resolution": r, "hold_images": IMAGES, "batch": BATCH} for r in rungs]
        source = data / ("digits" if self.preset == "digits" else "fashion")
        index = data / f"{source.name}-{HELD_OUT}"
        values["data"] |= {"url": str(source), "index_url": str(index), "held_out": HELD_OUT}
        values["data"] |= {"lanes": 16, "window": 8}
        values["scale"] = {"workers": 1}
        values["checkpoint"] = {"every_images": SAVE_EVERY, "keep": 1000}
        values["tracking"] = {"every_images": LOOK_EVERY, "pictures_every_images": SAVE_EVERY}
        values["collapse"] = {"action": action}
        values["evaluation"] = {}
        for section, changes in self.settings.items():
            values[section] |= changes
        return values


CASES = (
    Case("digits-biggan", "digits", 101),
    Case("digits-biggan-slow", "digits", 102, settings={"training": {"lr_generator": 2e-4}}),
    Case("fashion-biggan", "biggan-fashion", 103),
    Case("fashion-dcgan", "dcgan-fashion", 104),
    Case("fashion-progan", "progan-fashion", 105),
    Case("fashion-stylegan", "stylegan-fashion", 106),
    Case(
        "digits-momentum", "digits", 201, "Adam with β₁ 0.95, rates × 8", "digits-biggan",
        settings={"training": {"adam_beta1": 0.95, "lr_generator": 4e-3, "lr_discriminator": 4e-3}},
    ),
    Case(
        "fashion-starved", "biggan-fashion", 203, "D's rate / 1000", "fashion-biggan",
        settings={"training": {"lr_discriminator": 8e-7}},
    ),
    Case("digits-nan", "digits", 205, "a NaN planted in G", "digits-biggan", nan_at=SAVE_EVERY * 5),
    Case(
        "fashion-blinded", "stylegan-fashion", 206, "drift of weight 1000", "fashion-stylegan",
        settings={"training": {"drift": 1000.0}},
    ),
    Case(
        "digits-smothered", "digits", 208, "R1 of weight 1,000,000", "digits-biggan",
        settings={"training": {"r1": 1e6}},
    ),
    Case(
        "fashion-hasty", "progan-fashion", 209, "both rates × 50", "fashion-progan",
        settings={"training": {"lr_generator": 1e-1, "lr_discriminator": 1e-1}},
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Course:
    """A run's outcome: distance and number of classes at each checkpoint, and the detector's verdict."""

    case: str
    clocks: list[int]
    distances: list[float]
    classes: list[int]
    seen_at: int | None
    verdict: str
    rewinds: int

    def has_fallen(self, twin: "Course | None") -> bool:
        """Whether the run has collapsed at its last checkpoint; it has if the distance is not finite."""
        last, best = self.distances[-1], min(self.distances)
        twin_first = twin.distances[0] if twin else np.inf
        lost = self.classes[-1] <= max(self.classes) - MISSING_CLASSES
        return lost or not np.isfinite(last) or last >= min(FALLEN * best, twin_first)

    @property
    def doubled_at(self) -> float:
        """The clock from which on the distance stays at least twice the best before it; inf if never."""
        clock = np.inf
        for i in range(len(self.clocks) - 1, 0, -1):
            if self.distances[i] < FALLEN * min(self.distances[:i]):
                break
            clock = self.clocks[i]
        return clock


class CollapseOptions(Options):
    """Which runs, how many at a time, and where."""

    names: Positional[list[str]] = Field(default=[])
    """names of runs (default: all)"""
    jobs: Count = os.cpu_count() or 1
    """runs at a time (default: one per core)"""
    source: str = FASHION
    """IDX file of Fashion-MNIST"""
    out: Path = Path("runs/collapse")
    """folder for the data and the runs"""
    docs: Path = Path("docs")
    """folder for the page"""

    @field_validator("names")
    @classmethod
    def _are_known(cls, names: list[str]) -> list[str]:
        known = [case.name for case in CASES]
        unknown = sorted({*names} - {*known})
        if unknown:
            raise ValueError(f"unknown runs {unknown}; choose from {', '.join(known)}")
        return names


def main(arguments: Sequence[str]) -> None:
    """Parse, train the runs that are not finished, judge, write the table, print the figures."""
    options = parse(CollapseOptions, arguments, "benchmarks.collapse", __doc__ or "")
    data = options.out / "data"
    pack.main(["digits", str(data / "digits"), "--channels", "gray"])
    pack.main([options.source, str(data / "fashion"), "--channels", "gray", "--resolution", "32"])
    cases = [case for case in CASES if not options.names or case.name in options.names]
    torch.set_num_threads(1)  # beside other runs, more threads only wait for each other
    courses = _courses(cases, options.out, "alert", options.jobs)
    fallen = {c.name: courses[c.name].has_fallen(courses.get(c.twin)) for c in cases}
    detected = [c for c in cases if fallen[c.name] and courses[c.name].seen_at is not None]
    rewound = _courses(detected, options.out, "rewind", options.jobs)
    recovered = {c.name: not rewound[c.name].has_fallen(courses.get(c.twin)) for c in detected}
    table = [
        _row(case, courses[case.name], fallen[case.name], recovered.get(case.name)) for case in cases
    ]
    print("\n".join([HEAD, *table]))
    figures = _figures(courses, fallen, recovered)
    if not options.names:
        text = PAGE.format(
            table="\n".join([HEAD, *table]), figures="\n".join(figures), name=f"fd_{_features().name}"
        )
        page = options.docs / "collapse.md"
        # the first section is the benchmark's; the others explain, and stay
        _, heading, others = page.read_text().partition("\n## ") if page.exists() else ("", "", "")
        page.write_text(text + heading + others)
    print("\n".join(figures))


def _figures(
    courses: dict[str, Course], fallen: dict[str, bool], recovered: dict[str, bool]
) -> list[str]:
    collapsed = [courses[name] for name in courses if fallen[name]]
    detected = [course for course in collapsed if course.seen_at is not None]
    early = [course for course in detected if (course.seen_at or 0) <= course.doubled_at]
    others = [courses[name] for name in courses if not fallen[name]]
    alarms = [course for course in others if course.seen_at is not None]

    def share(name: str, part: int, whole: int) -> str:
        return f"{name} {part / whole if whole else 1:.3f} {part}/{whole}"

    return [
        share("recall", len(detected), len(collapsed)),
        share("early", len(early), len(detected)),
        f"false_alarms {len(alarms)} {len(alarms)}/{len(others)}",
        share("rescued", sum(recovered.values()), len(recovered)),
    ]


def _courses(cases: Sequence[Case], out: Path, action: str, jobs: int) -> dict[str, Course]:
    """The courses by name, with `jobs` runs at a time."""
    with ThreadPoolExecutor(jobs) as threads:
        courses = threads.map(lambda case: _course(case, out, action), cases)
        return dict(zip([case.name for case in cases], courses, strict=True))


def _course(case: Case, out: Path, action: str) -> Course:
    """The run's course; trains and scores it unless a course with the same settings is stored."""
    settings = json.dumps([case.config(Path(), Path(), action), case.nan_at, SAMPLES], sort_keys=True)
    key = hashlib.sha256(settings.encode()).hexdigest()[:8]
    run = out / f"{case.name}-{action}-{key}"
    file = out / f"{run.name}.json"
    if not file.exists():
        config = case.config(out / "data", run, action)
        _train(case, config, run)
        course = _score(case, config, run)
        file.write_text(json.dumps(asdict(course), indent=2))
    course = Course(**json.loads(file.read_text()))
    result = f"detected at {course.seen_at}: {course.verdict}" if course.seen_at else "nothing detected"
    print(f"{case.name} ({action}): {result}", file=sys.stderr, flush=True)
    return course


def _train(case: Case, config: dict[str, Any], run: Path) -> None:
    run.mkdir(parents=True, exist_ok=True)
    file = run / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "service.train", "--config", str(file)]
    environment = os.environ | {"RAY_ADDRESS": "local"}
    with open(run / "log", "a") as log:
        if case.nan_at and not (run / "planted").exists():
            part = [*command, "--run.images", str(case.nan_at)]
            if subprocess.run(part, env=environment, stdout=log, stderr=log).returncode:
                raise ServiceError(f"{case.name}: the training failed; see {run / 'log'}")
            _plant_nan(run)
        completed = subprocess.run(command, env=environment, stdout=log, stderr=log)
    # a run that stops after its last rewind has a course too
    if completed.returncode and config["collapse"]["action"] != "rewind":
        raise ServiceError(f"{case.name}: the training failed; see {run / 'log'}")


def _plant_nan(run: Path) -> None:
    """Set a weight of the newest checkpoint to NaN, as a flipped bit would, and correct the digest."""
    storage = open_storage(str(run))
    name = commits.find(storage)[0][-1]
    folder = run / name.folder
    weights = torch.load(folder / "generator.pt", weights_only=True)
    next(tensor for tensor in weights.values() if tensor.ndim > 1).view(-1)[0] = float("nan")
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    (folder / "generator.pt").write_bytes(buffer.getvalue())
    manifest = json.loads((folder / commits.MANIFEST).read_text())
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    manifest["files"]["generator.pt"] = {"bytes": buffer.tell(), "sha256": digest}
    (folder / commits.MANIFEST).write_text(json.dumps(manifest))
    (run / "planted").touch()


def _score(case: Case, config: dict[str, Any], run: Path) -> Course:
    source, index = config["data"]["url"], config["data"]["index_url"]
    target, judge = _reality(source, index, case.resolution)
    storage = open_storage(str(run))
    clocks, distances, classes = [], [], []
    for name in commits.find(storage)[0]:
        images = _sample(str(run / name.folder))
        features = _features()(images)
        counts = np.bincount(judge.predict(features), minlength=CLASSES)
        clocks.append(name.clock)
        distances.append(frechet_distance(target, moments(features)))
        classes.append(int((counts >= FOUND_SHARE * SAMPLES).sum()))
        if images.std() == 0:  # one colour: what NaN weights draw, or as bad
            distances[-1] = float("inf")
    (run / "last.png").write_bytes(grid_png(images[: 10 * CLASSES], GridLook(CLASSES, 32)))
    seen_at, verdict, rewinds = _verdict(run)
    return Course(case.name, clocks, distances, classes, seen_at, verdict, rewinds)


@cache
def _features() -> FeatureSet:
    return open_features()


@cache
def _reality(url: str, index_url: str, resolution: int) -> tuple[Moments, LogisticRegression]:
    """Moments of held-out images, and a classifier trained on features of these and more."""
    index = read_index(open_storage(index_url))
    rows = index.rows(held_out=True)
    dataset = Dataset(url, index, Order(index, rows, 0, 1, 1), channels=1)
    count = min(len(rows), 3 * SAMPLES)
    batch: Batch = read(dataset, Request(np.arange(count), resolution))
    features = _features()(batch.images)
    judge = LogisticRegression(max_iter=500).fit(features, batch.labels)
    return moments(features[:SAMPLES]), judge


def _sample(address: str) -> NDArray[np.uint8]:
    trained = load(address)
    draws, numbers = Draws(0, "benchmark", 0), np.arange(SAMPLES)
    labels = numbers % (trained.shape.classes or 1)
    latents = draws.latents(numbers, trained.shape.latents)
    sampler = Sampler(trained.generator, trained.shape, trained.stage, seed=0)
    return sampler.draw(latents, labels, noise_seeds=draws.seeds(numbers, "noise"))


def _verdict(run: Path) -> tuple[int | None, str, int]:
    """From MLflow: the clock of the first verdict "collapsed", its reason, and the number of rewinds."""
    client = mlflow.MlflowClient(f"sqlite:///{run}/mlflow.db")
    experiment = client.get_experiment_by_name("gan-training")
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    (first, *attempts) = runs
    points = client.get_metric_history(first.info.run_id, "collapse_level")
    collapsed = sorted(point.step for point in points if point.value == 2)
    tags = first.data.tags
    reason = tags.get("gan.rewind") or tags.get("gan.alert") or ""
    return (collapsed[0] if collapsed else None), reason, len(attempts)


HEAD = (
    "| run | condition | collapsed | detected at | distance doubled at | best / last distance | classes"
    f" | after rewinds |\n|{' --- |' * 8}"
)


def _row(case: Case, course: Course, fallen: bool, recovered: bool | None) -> str:
    doubled = f"{course.doubled_at:,.0f}" if np.isfinite(course.doubled_at) else "–"
    seen = f"{course.seen_at:,}" if course.seen_at else "–"
    rewound = "–" if recovered is None else "recovered" if recovered else "collapsed again"
    distances = f"{min(course.distances):.0f} / {course.distances[-1]:.0f}"
    return (
        f"| {case.name} | {case.means or 'healthy'} | {'yes' if fallen else 'no'} | {seen} | {doubled}"
        f" | {distances} | {course.classes[-1]} | {rewound} |"
    )


PAGE = """# Collapse, detected and undone

Written by `python -m benchmarks.collapse`: runs of 76,800 images on real digits and on
Fashion-MNIST, half of them driven to collapse.

Two measures that the detector does not use decide whether a run *collapsed*: the Fréchet distance of the
EMA's samples to held-out images (`{name}`), and the number of classes that a classifier
finds among the samples. A run has collapsed if its last distance is at least twice its best or at least
the first distance of its healthy twin, or if it has lost three or more of its classes. *Detected at* is
the clock of the first verdict "collapsed". Collapsed runs that were detected trained once more with
`collapse.action: rewind`; *after rewinds* says how that ended.

{table}

```
{figures}
```

`recall` is the share of collapsed runs that were detected, `early` the share of those that were detected
before the distance doubled, and `rescued` the share of those that recovered.
"""


if __name__ == "__main__":
    run_command(main)
