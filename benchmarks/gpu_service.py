"""The service whole on GPUs: `make gpu-service`. Without one it says so and exits 3.

On one machine it packs real digits, trains them at 16 px and at 64 px, kills the driver of a third run
and gives the same command again, and draws from what came out. With two GPUs or more it takes two
workers, which talk over NCCL. It prints lines `name value`:
  gpus, workers         of the machine, and taken
  NAME.images_per_s     at the last look of a run, with rehearsal, recorder, checkpoints and pictures
  NAME.mfu, NAME.gpu_busy, NAME.gpu_memory_share   at that look
  NAME.seconds          from the command to its end
  killed.continued      images at the end of the run whose driver was killed, over those asked for
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
import yaml

from service import pack, sample
from service.cli import Options, parse, run_command
from service.config.yaml import load_preset
from service.run import commits
from service.storage import open_storage

NOTHING_CHECKED = 3
LIMIT_S = 600
SHOWN = ("images_per_s", "mfu", "gpu_busy", "gpu_memory_share")


def write(folder: Path, name: str, workers: int, **sections: Any) -> Path:
    """A file of the digits preset on GPUs, with these sections over it."""
    values = load_preset("digits")
    values["run"] = {"dir": str(folder / name)}
    values["data"] |= {"url": str(folder / "data")}
    values["scale"] = {"workers": workers, "gpu": True, "cpus": 4}
    values["training"] |= {"precision": "bf16"}
    for section, changes in sections.items():
        values[section] = changes if isinstance(changes, list) else values[section] | changes
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def files(folder: Path, workers: int) -> dict[str, Path]:
    """The files of all runs, by name."""
    rgb = {"channels": 3}
    large = {"resolution": 64, "width": 32, "latents": 80, "embedding": 32, "attention": 32}
    long = [{"resolution": 64, "hold_images": 64000, "batch": 64}]
    often = {"every_images": 16000}
    return {
        "digits16": write(folder, "digits16", workers, model=rgb),
        "digits64": write(folder, "digits64", workers, model=rgb | large, phases=long),
        "killed": write(folder, "killed", workers, model=rgb | large, phases=long, checkpoint=often),
    }


def start(file: Path) -> subprocess.Popen[bytes]:
    """The training of a file, as a process of its own on a Ray of its own."""
    command = [sys.executable, "-m", "service.train", "--config", str(file)]
    return subprocess.Popen(command, env=os.environ | {"RAY_ADDRESS": "local"})


def trained(file: Path) -> dict[str, float]:
    """Train to the end; returns the last look's values and the seconds that all took."""
    begun = time.monotonic()
    if code := start(file).wait(LIMIT_S):
        raise SystemExit(f"{file}: the training ended with {code}")
    seconds = time.monotonic() - begun
    folder = yaml.safe_load(file.read_text())["run"]["dir"]
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("gan-training")
    (run,) = client.search_runs([experiment.experiment_id])
    found = {name: run.data.metrics[name] for name in SHOWN if name in run.data.metrics}
    return found | {"seconds": seconds}


def continued(file: Path) -> float:
    """Kill the driver after its first commit, give the command again; the share of images at the end."""
    values = yaml.safe_load(file.read_text())
    storage = open_storage(values["run"]["dir"])
    driver = start(file)
    while not commits.find(storage)[0]:
        if driver.poll() is not None:
            raise SystemExit(f"{file}: the training ended with {driver.returncode}")
        time.sleep(0.5)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    trained(file)
    return commits.newest_clock(storage) / sum(phase["hold_images"] for phase in values["phases"])


def main(arguments: Sequence[str]) -> None:
    """Train, kill, continue and draw; print lines `name value`."""
    parse(Options, arguments, "benchmarks.gpu_service", __doc__ or "")
    import torch

    gpus = torch.cuda.device_count()
    if not gpus:
        print("NOTHING WAS CHECKED: torch sees no GPU here", file=sys.stderr)
        sys.exit(NOTHING_CHECKED)
    workers = min(gpus, 2)
    print("gpus", gpus)
    print("workers", workers)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pack.main(["digits", str(folder / "data"), "--channels", "rgb", "--resolution", "64"])
        runs = files(folder, workers)
        killed = runs.pop("killed")
        for run, file in runs.items():
            for key, value in trained(file).items():
                print(f"{run}.{key} {value:.6g}", flush=True)
        print(f"killed.continued {continued(killed):.6g}")
        sample.main([str(folder / "killed"), "--out", str(folder / "drawn.png")])
        print("drawn.bytes", (folder / "drawn.png").stat().st_size)


if __name__ == "__main__":
    run_command(main)
