"""Is a collapse seen, in time, and undone? `python -m benchmarks.collapse --quick [NAME …]`.

Twelve runs on real digits and on Fashion-MNIST, half of them healthy, half driven to collapse, each by
other means; neither the means nor the seeds are those that the detector's thresholds were set on.
Each trains through `service.train` with collapse.action alert, so that it goes on and shows what became
of it: checkpoint by checkpoint the Fréchet distance of the EMA's samples to held-out images, and the
classes that a classifier finds among them, neither of which the detector knows. A run has fallen if its
last distance is twice its best or more, if it ends worse than its healthy twin began, at the first
checkpoint, or if three classes are missing that it had. What fell and was seen trains once more with
collapse.action rewind. Ends with lines `name value count`:

  recall        fallen runs that were seen
  early         of those seen, those seen before the distance had doubled from its best
  false_alarms  runs that had not fallen, and were said to have collapsed
  rescued       of those seen, those that end well with rewinds

Results are kept by their settings: an interrupted benchmark goes on where it stopped.
"""

import argparse
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
from sklearn.linear_model import LogisticRegression

from service import pack
from service.cli import run_command
from service.config import load_preset
from service.data.index import read_index
from service.data.order import Order
from service.data.samples import Batch, Request, Source, read
from service.engine.sampler import Sampler
from service.errors import ServiceError
from service.metrics.feature_set import FeatureSet
from service.metrics.features import open_features
from service.metrics.frechet import Moments, frechet_distance, moments
from service.random.draws import Draws
from service.recording.pictures import grid_png
from service.storage import open_storage
from service.training import checkpoint
from service.training.trained import load

FASHION = "/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz"
IMAGES, LOOK_EVERY, SAVE_EVERY = 76_800, 2_560, 7_680
SAMPLES, CLASSES = 500, 10
HELD_OUT = 0.3  # of the images, so that there are enough to compare with
FOUND_SHARE = 0.03  # of the samples, where even shares are 0.1
MISSING_CLASSES = 3
FALLEN = 2.0


@dataclass(frozen=True)
class Case:
    """A run: a preset and what it changes; `twin` is the healthy run that it is compared with."""

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
        values = load_preset(self.preset)
        values["run"] = {"dir": str(run), "seed": self.seed, "images": IMAGES}
        # the networks are those of 32 px; the rungs above the first are not come to
        rungs = [r for r in (8, 16, 32) if r >= self.resolution]
        values["phases"] = [{"resolution": r, "hold_images": IMAGES, "batch": 128} for r in rungs]
        source = data / ("digits" if self.preset == "digits" else "fashion")
        index = data / f"{source.name}-{HELD_OUT}"
        values["data"] |= {"url": str(source), "index_url": str(index), "held_out": HELD_OUT}
        values["data"] |= {"lanes": 16, "window": 8}
        values["scale"] = {"workers": 1}
        values["checkpoint"] = {"every_images": SAVE_EVERY, "keep": 1000}
        values["tracking"] = {"every_images": LOOK_EVERY, "pictures_every_images": SAVE_EVERY}
        values["collapse"] = {"action": action}
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
    """What became of a run: by checkpoint its distance and classes found; what the detector said."""

    case: str
    clocks: list[int]
    distances: list[float]
    classes: list[int]
    seen_at: int | None
    verdict: str
    rewinds: int

    def has_fallen(self, twin: "Course | None") -> bool:
        """By the last checkpoint; a distance that is no number is the worst."""
        last, best = self.distances[-1], min(self.distances)
        begun = twin.distances[0] if twin else np.inf
        lost = self.classes[-1] <= max(self.classes) - MISSING_CLASSES
        return lost or not np.isfinite(last) or last >= min(FALLEN * best, begun)

    @property
    def doubled_at(self) -> float:
        """The first checkpoint from which on the distance stays at twice the best before it or more."""
        found = np.inf
        for i in range(len(self.clocks) - 1, 0, -1):
            if self.distances[i] < FALLEN * min(self.distances[:i]):
                break
            found = self.clocks[i]
        return found


def main(arguments: Sequence[str]) -> None:
    """Parse, train what is not finished, judge, write the table, print the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.collapse",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [case.name for case in CASES]
    parser.add_argument("names", nargs="*", help=f"of {', '.join(names)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="the twelve runs; there are no longer ones")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="runs side by side (default: one a core)"
    )
    parser.add_argument(
        "--source", default=FASHION, help="IDX file of Fashion-MNIST (default %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/collapse"), help="(default %(default)s)")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="(default %(default)s)")
    options = parser.parse_args(arguments)
    unknown = sorted({*options.names} - {*names})
    if unknown:
        parser.error(f"{unknown}: no such run; choose of {', '.join(names)}")
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs}: give 1 or more")
    data = options.out / "data"
    pack.main(["digits", str(data / "digits"), "--channels", "gray"])
    pack.main([options.source, str(data / "fashion"), "--channels", "gray", "--resolution", "32"])
    cases = [case for case in CASES if not options.names or case.name in options.names]
    torch.set_num_threads(1)  # more, beside other runs, only wait for each other
    watched = _courses(cases, options.out, "alert", options.jobs)
    fallen = {c.name: watched[c.name].has_fallen(watched.get(c.twin)) for c in cases}
    seen = [c for c in cases if fallen[c.name] and watched[c.name].seen_at is not None]
    saved = _courses(seen, options.out, "rewind", options.jobs)
    ended_well = {c.name: not saved[c.name].has_fallen(watched.get(c.twin)) for c in seen}
    table = [
        _row(case, watched[case.name], fallen[case.name], ended_well.get(case.name)) for case in cases
    ]
    print("\n".join([HEAD, *table]))
    figures = _figures(watched, fallen, ended_well)
    if not options.names:
        text = PAGE.format(
            table="\n".join([HEAD, *table]), figures="\n".join(figures), name=f"fd_{_features().name}"
        )
        (options.docs / "collapse.md").write_text(text)
    print("\n".join(figures))


def _figures(
    watched: dict[str, Course], fallen: dict[str, bool], ended_well: dict[str, bool]
) -> list[str]:
    fell = [watched[name] for name in watched if fallen[name]]
    seen = [course for course in fell if course.seen_at is not None]
    early = [course for course in seen if (course.seen_at or 0) <= course.doubled_at]
    upright = [watched[name] for name in watched if not fallen[name]]
    alarms = [course for course in upright if course.seen_at is not None]

    def share(name: str, part: int, whole: int) -> str:
        return f"{name} {part / whole if whole else 1:.3f} {part}/{whole}"

    return [
        share("recall", len(seen), len(fell)),
        share("early", len(early), len(seen)),
        f"false_alarms {len(alarms)} {len(alarms)}/{len(upright)}",
        share("rescued", sum(ended_well.values()), len(ended_well)),
    ]


def _courses(cases: Sequence[Case], out: Path, action: str, jobs: int) -> dict[str, Course]:
    """The courses by name, of so many runs side by side."""
    with ThreadPoolExecutor(jobs) as threads:
        found = threads.map(lambda case: _course(case, out, action), cases)
        return dict(zip([case.name for case in cases], found, strict=True))


def _course(case: Case, out: Path, action: str) -> Course:
    """The run's course, trained and scored unless that was done before with the same settings."""
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
    told = f"seen at {course.seen_at}: {course.verdict}" if course.seen_at else "nothing seen"
    print(f"{case.name} ({action}): {told}", file=sys.stderr, flush=True)
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
                raise ServiceError(f"{case.name}: the training failed, see {run / 'log'}")
            _plant_nan(run)
        done = subprocess.run(command, env=environment, stdout=log, stderr=log)
    # a run that is given up after its rewinds has a course too
    if done.returncode and config["collapse"]["action"] != "rewind":
        raise ServiceError(f"{case.name}: the training failed, see {run / 'log'}")


def _plant_nan(run: Path) -> None:
    """As a flipped bit would: a weight of the newest checkpoint becomes NaN, and the digest is right."""
    storage = open_storage(str(run))
    name = checkpoint.find(storage)[0][-1]
    folder = run / name.folder
    weights = torch.load(folder / "generator.pt", weights_only=True)
    next(tensor for tensor in weights.values() if tensor.ndim > 1).view(-1)[0] = float("nan")
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    (folder / "generator.pt").write_bytes(buffer.getvalue())
    manifest = json.loads((folder / checkpoint.MANIFEST).read_text())
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    manifest["files"]["generator.pt"] = {"bytes": buffer.tell(), "sha256": digest}
    (folder / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    (run / "planted").touch()


def _score(case: Case, config: dict[str, Any], run: Path) -> Course:
    source, index = config["data"]["url"], config["data"]["index_url"]
    target, judge = _reality(source, index, case.resolution)
    storage = open_storage(str(run))
    clocks, distances, classes = [], [], []
    for name in checkpoint.find(storage)[0]:
        images = _sample(str(run / name.folder))
        found = _features()(images)
        guessed = np.bincount(judge.predict(found), minlength=CLASSES)
        clocks.append(name.images)
        distances.append(frechet_distance(target, moments(found)))
        classes.append(int((guessed >= FOUND_SHARE * SAMPLES).sum()))
        if images.std() == 0:  # what NaN and nothing else draws, or as bad
            distances[-1] = float("inf")
    (run / "last.png").write_bytes(grid_png(images[: 10 * CLASSES], CLASSES, 32))
    seen_at, verdict, rewinds = _verdict(run)
    return Course(case.name, clocks, distances, classes, seen_at, verdict, rewinds)


@cache
def _features() -> FeatureSet:
    return open_features()


@cache
def _reality(url: str, index_url: str, resolution: int) -> tuple[Moments, LogisticRegression]:
    """Moments of held-out images, and a classifier of features trained on others of them."""
    index = read_index(open_storage(index_url))
    rows = index.rows(held_out=True)
    source = Source(url, index, Order(index, rows, 0, 1, 1), channels=1)
    count = min(len(rows), 3 * SAMPLES)
    batch: Batch = read(source, Request(np.arange(count), resolution))
    found = _features()(batch.images)
    judge = LogisticRegression(max_iter=500).fit(found, batch.labels)
    return moments(found[:SAMPLES]), judge


def _sample(address: str) -> NDArray[np.uint8]:
    trained = load(address)
    draws, numbers = Draws(0, "benchmark", 0), np.arange(SAMPLES)
    labels = numbers % (trained.shape.classes or 1)
    latents = draws.latents(numbers, trained.shape.latents)
    sampler = Sampler(trained.generator, trained.shape, trained.stage, seed=0)
    return sampler.draw(latents, labels, noise_seeds=draws.seeds(numbers, "noise"))


def _verdict(run: Path) -> tuple[int | None, str, int]:
    """When a collapse was first told, in which words, and how many rewinds there were: from MLflow."""
    client = mlflow.MlflowClient(f"sqlite:///{run}/mlflow.db")
    experiment = client.get_experiment_by_name("gan-training")
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    (first, *attempts) = runs
    points = client.get_metric_history(first.info.run_id, "collapse_level")
    collapsed = sorted(point.step for point in points if point.value == 2)
    tags = first.data.tags
    words = tags.get("gan.rewind") or tags.get("gan.alert") or ""
    return (collapsed[0] if collapsed else None), words, len(attempts)


HEAD = (
    f"| run | means | fell | seen at | distance doubled at | best / last distance | classes | rewound |"
    f"\n|{' --- |' * 8}"
)


def _row(case: Case, course: Course, fallen: bool, ended_well: bool | None) -> str:
    doubled = f"{course.doubled_at:,.0f}" if np.isfinite(course.doubled_at) else "–"
    seen = f"{course.seen_at:,}" if course.seen_at else "–"
    rewound = "–" if ended_well is None else "ended well" if ended_well else "fell again"
    distances = f"{min(course.distances):.0f} / {course.distances[-1]:.0f}"
    return (
        f"| {case.name} | {case.means or 'healthy'} | {'yes' if fallen else 'no'} | {seen} | {doubled}"
        f" | {distances} | {course.classes[-1]} | {rewound} |"
    )


PAGE = """# Collapse, seen and undone

Written by `python -m benchmarks.collapse --quick`: runs of 76,800 images on real digits and on
Fashion-MNIST, half of them driven to collapse. *Fell* is what became of them by the Fréchet distance of
the EMA's samples to held-out images (`{name}`) and by the classes that a classifier finds, neither of
which the detector knows: the last distance is twice the best or more, or above that which its healthy
twin began with, or three classes of ten are missing that it had. *Seen at* is the clock of the first
verdict "collapsed". What fell and was seen trained once more with `collapse.action: rewind`.

{table}

```
{figures}
```
"""


if __name__ == "__main__":
    run_command(main)
