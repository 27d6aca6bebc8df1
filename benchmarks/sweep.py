"""What does a sweep find? `python -m benchmarks.sweep`: 8 trials on digits, within 15 minutes.

The sweep draws rates from a tenth to ten times the preset's, and one or two D steps, at 16 px on two
cores; asynchronous successive halving stops trials. Prints `best_over_median`, `trials` and `seconds`.
The first is the best score over the median of the trials that did not collapse.
"""

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import yaml

from service import pack
from service.cli import Options, Seed, parse, run_command
from service.config.yaml import load_preset
from service.errors import ServiceError
from service.tuning.report import CSV_KEY

PRESET = "digits"
TRIALS, FACTOR = 8, 10
RATES = ("lr_generator", "lr_discriminator")
HELD_OUT = 0.3  # of 1,797 digits, so that there are enough to compare with
PHASES = [{"resolution": 16, "hold_images": 24000, "batch": 64}]
SETTINGS = {
    "model.resolution": 16,
    "model.attention": "null",
    "model.latents": 60,
    "phases": json.dumps(PHASES),
    "scale.workers": 1,
    "checkpoint.every_images": 3000,
    "evaluation.every_images": 3000,
    "evaluation.images": 500,
    "tracking.every_images": 1500,
    "tracking.pictures_every_images": 12000,
}


class BenchmarkOptions(Options):
    """Where the sweep runs, and its seed."""

    out: Path = Path("runs/sweep")
    """folder for the data and the sweep"""
    seed: Seed = 0
    """seed of the search"""


def main(arguments: Sequence[str]) -> None:
    """Pack, sweep, read the table, print the figures."""
    options = parse(BenchmarkOptions, arguments, "benchmarks.sweep", __doc__ or "")
    data, folder, space = options.out / "data", options.out / "sweep", options.out / "space.yaml"
    pack.main(["digits", str(data), "--channels", "gray", "--resolution", "16",
               "--held-out", str(HELD_OUT)])  # fmt: skip
    space.write_text(yaml.safe_dump(_space()))
    command = [sys.executable, "-m", "service.sweep", "--preset", PRESET, "--space", str(space),
               "--dir", str(folder), "--trials", str(TRIALS), "--seed", str(options.seed),
               "--grace-images", "3000", "--data.url", str(data)]  # fmt: skip
    flags = [part for key, value in SETTINGS.items() for part in (f"--{key}", str(value))]
    start = time.monotonic()
    try:
        subprocess.run([*command, *flags], env=os.environ | {"RAY_ADDRESS": "local"}, check=True)
    except subprocess.CalledProcessError as error:
        raise ServiceError("the sweep failed; run the same command to resume") from error
    seconds = time.monotonic() - start
    with (folder / CSV_KEY).open() as file:
        rows = list(csv.DictReader(file))
    scores = [float(row["score"]) for row in rows if row["score"]]
    print(f"best_over_median {min(scores) / median(scores):.3f}")
    print(f"trials {len(rows)}")
    print(f"seconds {seconds:.0f}")


def _space() -> dict[str, dict[str, list[float]]]:
    preset = load_preset(PRESET)["training"]
    rates: dict[str, dict[str, list[float]]] = {
        f"training.{rate}": {"loguniform": [preset[rate] / FACTOR, preset[rate] * FACTOR]}
        for rate in RATES
    }
    return rates | {"training.d_steps": {"choice": [1, 2]}}


if __name__ == "__main__":
    run_command(main)
