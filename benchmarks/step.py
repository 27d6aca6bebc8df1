"""How fast the step is, and what the service around it costs: `python -m benchmarks.step`.

All variants take turns in one run; rates are medians over rounds. BigGAN at 32 px, width 16, batch 64,
all cores:
  biggan_fp32_ratio  rate of this step in fp32 over that of a plain loop with the same networks
  biggan_bf16_ratio  rate of this step in bf16 over that of the plain loop, if the CPU has bf16 units
  look_share         time of looks at the collapse signals, one in 25 cycles, over that of the steps
  service_ratio      rate of a run of the service with one worker (Ray Train, recorder, checkpoints and
                     pictures, data from shards) over that of the bare step on batches in memory
The plain loop is what one would write from the paper: fp32, contiguous, enlarging before the
convolution, separate forwards of the discriminator, torch's default Adam, EMA parameter by parameter.
"""

import copy
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import torch
import yaml

from benchmarks.variant import NO_ENVIRONMENT, Variant
from models import Stage
from models.layers import spectral_iterate
from models.losses import LOSSES
from service import pack
from service.cli import Options, parse, run_command
from service.config import Config
from service.config.yaml import load_preset
from service.data.dataset import Batch
from service.data.index import read_index
from service.driver.settle import has_bf16_units, settle
from service.engine import distributed
from service.engine.curriculum import curriculum_of
from service.engine.state import new_state
from service.engine.step import Step
from service.glibc import KEEP_FREED_MEMORY
from service.storage import open_storage
from service.training.feed import dataset_of
from service.training.monitor import Monitor, PanelReader, panel_of

RESOLUTION, BATCH = 32, 64
CHANNELS, CLASSES = 3, 10
ROUNDS, CYCLES = 5, 6
SERVICE_IMAGES, SERVICE_EVERY = 16000, 1600


Build = Callable[[Config], Callable[[], object]]


def configure(folder: Path, precision: str) -> Config:
    """The fashion preset at one rung of 32 px in RGB, one worker with all cores."""
    values = load_preset("fashion")
    values["model"] |= {"channels": CHANNELS, "classes": CLASSES}
    values["phases"] = [{"resolution": RESOLUTION, "hold_images": 10**6, "batch": BATCH}]
    values["training"] |= {"precision": precision}
    values["run"] = {"dir": str(folder / "run"), "images": SERVICE_IMAGES}
    values["data"] |= {"url": str(folder / "data")}
    values["scale"] = {"workers": 1, "cpus": os.cpu_count() or 1}
    values["checkpoint"] = {"every_images": SERVICE_IMAGES // 2}
    values["evaluation"] = {}
    values["tracking"] |= {"every_images": SERVICE_EVERY, "pictures_every_images": SERVICE_IMAGES // 2}
    return settle(Config(**values))


def batches(start: int = 0, every: int = BATCH) -> Iterator[Batch]:
    """Batches of random images, all in memory, for every so many clocks from `start` on."""
    rng = np.random.default_rng(0)
    shape = (BATCH, RESOLUTION, RESOLUTION, CHANNELS)
    ready = [
        Batch(rng.integers(0, 256, shape, np.uint8), rng.integers(0, CLASSES, BATCH), np.arange(BATCH))
        for _ in range(8)
    ]
    for clock, batch in zip(itertools.count(start, every), itertools.cycle(ready), strict=False):
        yield replace(batch, clock=clock)


def fast_cycle(config: Config) -> Callable[[], object]:
    """The service's own step; each call of the result is one cycle."""
    state = new_state(config, torch.device("cpu"))
    step = Step(config, state, distributed.join())
    cycles = curriculum_of(config).cycles(0, 10**9)
    data = batches()
    return lambda: step.cycle(next(cycles), data)["loss_g"].item()


def plain_cycle(config: Config) -> Callable[[], object]:
    """The plain loop on the same networks; each call of the result is one cycle."""
    plain = {"channels_last": False, "fused_resampling": False, "precision": "fp32"}
    training = config.training.model_copy(update=plain)
    state = new_state(config.model_copy(update={"training": training}), torch.device("cpu"))
    generator, discriminator = state.generator, state.discriminator
    ema = copy.deepcopy(generator)
    betas = (0.0, 0.999)
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=1e-4, betas=betas)
    optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=1e-4, betas=betas)
    loss, stage, data = LOSSES["hinge"], Stage(RESOLUTION), batches()

    def cycle() -> None:
        batch = next(data)
        reals = torch.from_numpy(batch.images).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1
        latents = torch.randn(BATCH, config.shape.latents)
        labels = torch.randint(0, CLASSES, (BATCH,))
        spectral_iterate(discriminator)
        fakes = generator(latents, labels, stage).detach()
        real = discriminator(reals, torch.from_numpy(batch.labels), stage)
        fake = discriminator(fakes, labels, stage)
        optimizer_d.zero_grad()
        loss.discriminator(real, fake).backward()
        optimizer_d.step()
        spectral_iterate(generator)
        optimizer_g.zero_grad()
        latents = torch.randn(BATCH, config.shape.latents)
        fake = discriminator(generator(latents, labels, stage), labels, stage)
        loss.generator(fake, fake).backward()
        optimizer_g.step()
        with torch.no_grad():
            for mean, weight in zip(ema.parameters(), generator.parameters(), strict=True):
                mean.mul_(0.999).add_(weight, alpha=0.001)

    return cycle


def look(config: Config) -> Callable[[], object]:
    """The monitor's look at a training; each call of the result is one look."""
    state, workers = new_state(config, torch.device("cpu")), distributed.join()
    step = Step(config, state, workers)
    cycle = next(curriculum_of(config).cycles(0, BATCH))
    step.cycle(cycle, batches())
    panel = panel_of(config, dataset_of(config, read_index(open_storage(config.data.url))))
    monitor = Monitor(config, workers, panel, PanelReader(panel.dataset), step)
    monitor.prepare(cycle)
    return lambda: monitor.look(cycle)


def measured(build: Build, config: Config, environment: Mapping[str, str]) -> Variant:
    """A loop that `build` makes, on all cores in its own process."""
    return Variant(_with_all_cores, build, config.model_dump(), environment=environment)


def _with_all_cores(build: Build, values: dict) -> Callable[[], object]:
    torch.set_num_threads(os.cpu_count() or 1)
    return build(Config(**values))


def rate(variant: Variant) -> float:
    """Images a second over some cycles."""
    return CYCLES * BATCH / variant.call(CYCLES)[0]


def rates(variants: dict[str, Variant]) -> dict[str, float]:
    """Images a second of each variant: the median over rounds in which all take turns."""
    measurements: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(ROUNDS):
        for name, variant in variants.items():
            measurements[name].append(rate(variant))
    return {name: statistics.median(values) for name, values in measurements.items()}


def service_rate(config: Config, folder: Path) -> float:
    """Images a second of a run of the service, from its first record to its last."""
    file = folder / "service.yaml"
    file.write_text(yaml.safe_dump(config.model_dump()))
    command = [sys.executable, "-m", "service.train", "--config", str(file)]
    subprocess.run(command, check=True, env=os.environ | {"RAY_ADDRESS": "local"})
    client = mlflow.MlflowClient(f"sqlite:///{config.run.dir}/mlflow.db")
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    (run,) = client.search_runs([experiment.experiment_id])
    points = sorted((m.step, m.timestamp) for m in client.get_metric_history(run.info.run_id, "images"))
    (first, begun), (last, ended) = points[0], points[-1]
    return 1000 * (last - first) / (ended - begun)


class StepOptions(Options):
    """How much to measure."""

    quick: bool = False
    """leave out the run of the service"""


def main(arguments: Sequence[str]) -> None:
    """Measure, and print lines `name value`."""
    options = parse(StepOptions, arguments, "benchmarks.step", __doc__ or "")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # without bf16 units, bf16 is many times slower than fp32, and no run uses it
        fast = ("fp32", "bf16") if has_bf16_units() else ("fp32",)
        configs = {precision: configure(folder, precision) for precision in fast}
        pack.main(["digits", configs["fp32"].data.url, "--channels", "rgb"])
        variants = {"plain": measured(plain_cycle, configs["fp32"], NO_ENVIRONMENT)}
        for precision, config in configs.items():
            variants[precision] = measured(fast_cycle, config, KEEP_FREED_MEMORY)
        best = fast[-1]
        looks = measured(look, configs[best], KEEP_FREED_MEMORY)
        speeds = rates(variants | {"look": looks})
        # `rates` counts each look as one batch
        look_share = speeds[best] / speeds.pop("look") * BATCH / SERVICE_EVERY
        looks.close()
        lines = {f"{name}_images_per_s": rate for name, rate in speeds.items()}
        lines["look_share"] = look_share
        lines |= {f"biggan_{name}_ratio": speeds[name] / speeds["plain"] for name in fast}
        if not options.quick:
            served = service_rate(configs[best], folder)
            # measured again afterwards, so that a machine that slows down slows both sides
            bare = statistics.mean([speeds[best], rates({best: variants[best]})[best]])
            lines |= {"service_images_per_s": served, "service_ratio": served / bare}
        for variant in variants.values():
            variant.close()
    for name, value in lines.items():
        print(f"{name} {value:.3f}")


if __name__ == "__main__":
    run_command(main)
