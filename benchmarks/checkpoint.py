"""How long the training waits for a checkpoint: `python -m benchmarks.checkpoint`, in some minutes.

States of 200 MB and 1 GB are saved to a SeaweedFS on this machine. Each save is timed until the training
could go on, for the state is copied, and until it is uploaded and committed. Medians over rounds:
  wait_ratio_200mb, wait_ratio_1gb  the first over the second, which a blocking save would take
  wait_s_…, blocking_s_…            these seconds
"""

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any, cast

import torch
from pydantic import Field

from cluster.local import BUCKET, Stack
from service.cli import Options, parse, run_command
from service.engine.plain import PlainState
from service.run.checkpoint import Checkpointer, Keep, Tensors
from service.storage import Storage, open_storage
from service.storage.lock import RunLock

SIZES = {"200mb": 200 * 10**6, "1gb": 10**9}
LAYERS = 50
PARTS = ("generator", "discriminator", "ema", "optimizer_g")


class CheckpointOptions(Options):
    """How thoroughly to measure."""

    rounds: Annotated[int, Field(ge=1)] = 5
    """saves of each size"""


class State:
    """As many bytes of tensors as asked for, and a clock."""

    def __init__(self, size: int):
        shape = (LAYERS, size // (4 * LAYERS * len(PARTS)))
        self.parts: Tensors = {
            part: {f"layer{i}": row for i, row in enumerate(torch.rand(shape))} for part in PARTS
        }
        self.clock = 0

    def tensors(self) -> Tensors:
        """The tensors by part and name."""
        return self.parts

    def plain(self) -> PlainState:
        """The rest of it, one step later each time."""
        self.clock += 1
        return PlainState(seed=0, clock=self.clock)


def main(arguments: Sequence[str]) -> None:
    """Measure each size, and print the medians."""
    options = parse(CheckpointOptions, arguments, "benchmarks.checkpoint", __doc__ or "")
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack.load(Path(folder))
        try:
            stack.up(["s3"])
            os.environ.update(stack.environment)
            for name, size in SIZES.items():
                wait_s, blocking_s = measure(open_storage(f"s3://{BUCKET}/{name}"), size, options.rounds)
                print(f"wait_ratio_{name} {wait_s / blocking_s:.3f}")
                print(f"wait_s_{name} {wait_s:.3f}")
                print(f"blocking_s_{name} {blocking_s:.3f}")
        finally:
            stack.down()


def measure(storage: Storage, size: int, rounds: int) -> tuple[float, float]:
    """Seconds that a save in the background takes of the training, and those of a blocking one."""
    lock = RunLock(storage)
    saver = Checkpointer(storage, lock.acquire(), Keep(1), {})
    state = State(size)
    background, blocking = [], []
    try:
        for number in range(2 * rounds + 1):
            start = time.perf_counter()
            saver.save(cast(Any, state))  # it takes no more of a training's state than these two
            copied = time.perf_counter()
            saver.wait()
            done = time.perf_counter()
            if number == 0:
                continue  # its memory is new
            background.append(copied - start)
            blocking.append(done - start)
    finally:
        lock.release()
    return median(background), median(blocking)


if __name__ == "__main__":
    run_command(main)
