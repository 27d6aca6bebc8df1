"""What `benchmarks.recovery` measures: a run that notes when it does what, and is disturbed.

`python -m benchmarks.recovery_driver service|bare FOLDER DATA killed|asked|undisturbed` appends a line
of JSON for each mark to FOLDER/events.jsonl: what, when by the machine's monotonic clock, and by whom.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from service.config import Config
from service.config.yaml import load_preset
from service.driver import supervisor
from service.driver.join import join_ray
from service.driver.launch import launch
from service.driver.settle import settle
from service.engine.step import Step
from service.run import checkpoint
from service.training import worker
from service.training.job import Job

IMAGES, BATCH = 6400, 64
CHECKPOINT_EVERY, LOOK_EVERY = 1280, 320
KILL_AT = 2 * CHECKPOINT_EVERY + LOOK_EVERY
BARE_STEPS, BARE_STEP_S = 400, 0.05
FOLDER = "RECOVERY_FOLDER"


def note(what: str, **more: Any) -> None:
    """Write down that something happens now in this process."""
    event = {"what": what, "at": time.monotonic(), "pid": os.getpid()} | more
    with open(Path(os.environ[FOLDER]) / "events.jsonl", "a") as file:
        file.write(json.dumps(event) + "\n")


def events(folder: Path) -> list[dict[str, Any]]:
    """All marks, in their order; none before the first."""
    file = folder / "events.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def main(arguments: Sequence[str]) -> None:
    """Run once."""
    kind, folder, data, fate = arguments
    os.environ[FOLDER] = folder
    config = _config(Path(folder), data)
    if fate != "undisturbed":
        threading.Thread(target=_disturb, args=(Path(folder), fate), daemon=True).start()
    if kind == "bare":
        _bare(config)
        return
    supervisor.train = train
    supervisor.decide = _then(supervisor.decide, "judged")
    try:
        launch(config)
    except KeyboardInterrupt:
        note("ended")


def train(job: Job) -> int:
    """The worker's loop, with marks; what the rehearsal does is not marked."""
    note("began")
    resume, cycle = checkpoint.resume, Step.cycle

    def noted_cycle(self: Step, which: Any, batches: Any) -> Any:
        measures = cycle(self, which, batches)
        note("cycle", clock=which.end)
        return measures

    def noted_resume(*given: Any) -> Any:
        resumed = resume(*given)
        note("loaded")
        patch.object(Step, "cycle", noted_cycle).start()
        return resumed

    patch.object(checkpoint, "resume", noted_resume).start()
    return worker.train(job)


def _then(function: Callable[..., Any], what: str) -> Callable[..., Any]:
    def noted(*given: Any, **named: Any) -> Any:
        note(what)
        return function(*given, **named)

    return noted


def _bare(config: Config) -> None:
    with join_ray(config):
        TorchTrainer(
            bare_loop,
            scaling_config=ScalingConfig(num_workers=1),
            run_config=RunConfig(
                storage_path=f"{config.run.dir}/ray", failure_config=FailureConfig(max_failures=1)
            ),
        ).fit()


def bare_loop() -> None:
    """A training of one linear layer, which begins anew when it dies."""
    note("began")
    layer = torch.nn.Linear(64, 64)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    for step in range(1, 1 + BARE_STEPS):
        layer(torch.ones(64, 64)).square().mean().backward()
        optimizer.step()
        note("cycle", clock=step * BATCH)
        time.sleep(BARE_STEP_S)


def _disturb(folder: Path, fate: str) -> None:
    while True:
        for event in events(folder):
            if event["what"] == "cycle" and event["clock"] >= KILL_AT:
                if fate == "asked":
                    os.kill(os.getpid(), signal.SIGTERM)
                else:
                    note("killed", victim=event["pid"])
                    os.kill(event["pid"], signal.SIGKILL)
                return
        time.sleep(0.05)


def _config(folder: Path, data: str) -> Config:
    """The digits preset at its last rung."""
    values = load_preset("digits")
    values["phases"] = [{"resolution": 16, "hold_images": IMAGES, "batch": BATCH}]
    values["data"] |= {"url": data}
    values["run"] |= {"dir": str(folder / "run")}
    values["scale"] = {"workers": 1}
    values["evaluation"] = {}
    values["checkpoint"] = {"every_images": CHECKPOINT_EVERY}
    values["tracking"] |= {"every_images": LOOK_EVERY, "pictures_every_images": IMAGES}
    return settle(Config(**values))


if __name__ == "__main__":
    from benchmarks import recovery_driver  # workers look its functions up there, not in __main__

    recovery_driver.main(sys.argv[1:])
