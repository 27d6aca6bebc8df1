"""What the training does on a GPU, checked and measured there: `make gpu`.

It needs a GPU, torch, and the few packages of the engine: no Ray, no MLflow, no network. Without a GPU
it says so and exits 3. It prints lines `name value`. A check that fails prints `name failed` with the
error's first line; the others go on, and the exit code is 1.

  cycle.*   cycles of a family, small and with its regularisers, that ended with finite losses
  syncs.*   how many places wait for the GPU in a cycle, and each by file and line
  apart.*   largest relative difference of the losses from those on the CPU, at the first and last cycle
  same.*    1 if two trainings from one seed have the same losses to the bit
  look.*    signals of collapse
  draws.*   host time of drawing latents; copy: from the host to the GPU; nccl: an all-reduce
  replay.*  cycles as CUDA graphs: how far their weights and those of the same cycles without graphs lie
            apart; in the speed part, how many times as fast they are (ratio).
            replay.biggan128_compiled: its networks are compiled first, in about two minutes
  biggan128_mfu, biggan128_ratio (compiled and captured over the plain loop), low_rung_ratio (ProGAN at 4
            to 16 px, captured over not), device_busy (the least), host_share of a cycle (the largest)
  the rest  images/s, milliseconds and host milliseconds a cycle, peak memory, kernels a cycle, the share
            of the time in which a kernel runs (busy), and of the GPU's peak (mfu). biggan128.plain is
            the loop that one writes first: autocast to bf16, but contiguous tensors, separate forwards,
            torch's default Adam, the EMA parameter by parameter
"""

import argparse
import copy
import gc
import itertools
import math
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from models import Stage
from models.layers import spectral_iterate
from models.losses import LOSSES
from service.collapse import signals
from service.config import Config
from service.config.yaml import load_preset
from service.data.dataset import Batch
from service.engine.capture import EAGER
from service.engine.cost import costs
from service.engine.curriculum import curriculum_of
from service.engine.device import use_device
from service.engine.distributed import Workers
from service.engine.flops import Flops, peak_flops
from service.engine.state import TrainState, new_state
from service.engine.step import COUNTED, FINITE, MEASURES, Step
from service.random.draws import Draws

NOTHING_CHECKED = 3
ROOT = Path(__file__).parents[1]
WARM_UP, MEASURED, LONGEST = 3, 5, 8

Values = dict[str, Any]
Lines = dict[str, float | str]
Check = tuple[str, Callable[[], Lines]]


# Small trainings of every family ------------------------------------------------------------------

SMALL: dict[str, tuple[Values, Values]] = {
    "dcgan": ({}, {"loss": "non-saturating", "r1": 1.0, "r1_every": 2}),
    "sagan": (
        {"attention": 8},
        {"loss": "lsgan", "gradient_penalty": 1, "gradient_penalty_every": 3, "orthogonal": 1e-4},
    ),
    "biggan": ({"latents": 18, "embedding": 8, "attention": 8}, {"d_steps": 2, "orthogonal": 1e-4}),
    "biggan-deep": ({"embedding": 8}, {}),
    "progan": ({}, {"loss": "wgan", "gradient_penalty": 10, "drift": 1e-3, "reset_adam": True}),
    "stylegan": (
        {"mapping_layers": 2},
        {"loss": "non-saturating", "r1": 2.0, "style_mixing": 0.9, "adam_beta2": 0.99},
    ),
    "mnist-pggan": (
        {"resolution": 28, "base": 7, "classes": None},
        {"loss": "relativistic", "r1": 1.0, "r2": 1.0, "slope_sigma": 0.1},
    ),
}
"""Settings of the network, and of the training, that differ from `small`'s."""
SMALL_CYCLES = 12


def small(family: str, images: int = 96, **training: Any) -> Config:
    """A training of a small network: a rung, a fade and a hold, each over so many images."""
    model, own = SMALL[family]
    common = {"resolution": 16, "channels": 1, "classes": 10, "width": 8, "latents": 16}
    full = (common | model)["resolution"]
    values = load_preset("digits")
    values["model"] = {"family": family} | common | model
    values["phases"] = [
        {"resolution": full // 2, "hold_images": images, "batch": 16},
        {"resolution": full, "fade_images": images, "hold_images": images, "batch": 16},
    ]
    values["training"] |= {"precision": "fp32"} | own | training
    values["evaluation"] = {}
    return Config(**values)


@dataclass
class Training:
    """A training whose next cycle is always at hand."""

    state: TrainState
    step: Step
    take: Callable[[], dict[str, torch.Tensor]]


def training(config: Config, device: torch.device) -> Training:
    """A training from image 0 on random images."""
    use_device(config.training, device)
    state = new_state(config, device)
    step = Step(config, state, Workers(0, 1, device))
    cycles = curriculum_of(config).cycles(0, 10**12)
    data = batches(config)
    return Training(state, step, lambda: step.cycle(next(cycles), data))


def batches(config: Config) -> Iterator[Batch]:
    """Batches of random images for every step of the discriminator, without end."""
    ready: dict[tuple[int, int], Batch] = {}
    rng = np.random.default_rng(0)
    for cycle in curriculum_of(config).cycles(0, 10**12):
        size, resolution = cycle.span.batch, cycle.stage.resolution
        if (size, resolution) not in ready:
            shape = (size, resolution, resolution, config.model.channels)
            labels = rng.integers(0, config.model.classes or 1, size)
            images = rng.integers(0, 256, shape, np.uint8)
            ready[size, resolution] = Batch(images, labels, np.arange(size))
        for clock in cycle.batches():
            yield replace(ready[size, resolution], clock=clock)


def losses(config: Config, device: torch.device, cycles: int = SMALL_CYCLES) -> torch.Tensor:
    """FINITE's measures [cycles, measures] of a training, on the host."""
    trained = training(config, device)
    rows = [torch.stack([*trained.take().values()]) for _ in range(cycles)]
    places = [MEASURES.index(name) for name in FINITE]
    return torch.stack(rows).cpu()[:, places].double()


def cycle_checks(device: torch.device) -> Iterator[Check]:
    """Every family in each precision and layout."""
    for family, precision, last in itertools.product(SMALL, ("fp32", "bf16"), (True, False)):

        def check(family: str = family, precision: str = precision, last: bool = last) -> Lines:
            if (
                not losses(small(family, precision=precision, channels_last=last), device)
                .isfinite()
                .all()
            ):
                raise ArithmeticError("losses or gradients are not finite")
            return {"": SMALL_CYCLES}

        yield f"cycle.{family}.{precision}.{'nhwc' if last else 'nchw'}", check


def sync_checks(device: torch.device) -> Iterator[Check]:
    """Where a cycle waits for the device; 0 places is what the step promises."""
    for family, precision in itertools.product(SMALL, ("fp32", "bf16")):
        config = small(family, precision=precision)
        yield f"syncs.{family}.{precision}", partial(synchronisations, config, device)


def synchronisations(config: Config, device: torch.device) -> Lines:
    """How many places wait, and which."""
    trained = training(config, device)
    places: dict[str, int] = {}

    def note(message: Any, *_: Any, **__: Any) -> None:
        if "called a synchronizing" in str(message):
            place = own_place(traceback.extract_stack())
            places[place] = places.get(place, 0) + 1

    trained.take()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(SMALL_CYCLES):
                trained.take()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    lines: Lines = {"": len(places)}
    return lines | {f" at {place}": count for place, count in places.items()}


def own_place(stack: traceback.StackSummary) -> str:
    """File and line of the innermost frame in the step or the networks."""
    for frame in reversed(stack):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT / "service") or path.is_relative_to(ROOT / "models"):
            return f"{path.relative_to(ROOT)}:{frame.lineno}"
    return "elsewhere: " + " < ".join(
        f"{Path(f.filename).name}:{f.lineno}" for f in reversed(stack[-8:])
    )


def apart_checks(device: torch.device) -> Iterator[Check]:
    """CPU against GPU: the same seed, draws and images."""
    for family, precision in itertools.product(SMALL, ("fp64", "fp32")):
        config = small(family, precision=precision)

        def check(config: Config = config) -> Lines:
            there, here = losses(config, device), losses(config, torch.device("cpu"))
            apart = (there - here).abs() / here.abs().clamp_min(1e-3)
            return {"first": apart[0].max().item(), "last": apart[-1].max().item()}

        yield f"apart.{family}.{precision}", check


def same_checks(device: torch.device) -> Iterator[Check]:
    """Whether a training repeats itself to the bit."""
    for family, precision in itertools.product(SMALL, ("fp32", "bf16")):
        config = small(family, precision=precision)

        def check(config: Config = config) -> Lines:
            return {"": float(torch.equal(losses(config, device), losses(config, device)))}

        yield f"same.{family}.{precision}", check


def look_checks(device: torch.device) -> Iterator[Check]:
    """The monitor's measurements, on images and weights."""
    for family in SMALL:
        config = small(family, precision="bf16")

        def check(config: Config = config) -> Lines:
            trained, size = training(config, device), 8
            trained.take()
            cycle = next(curriculum_of(config).cycles(0, 64))
            labels = np.arange(size) % (config.model.classes or 1)
            draws = Draws(0, "monitor", 0)
            images = trained.step.imagine(draws, np.arange(size), labels, cycle)
            features, logits = trained.step.examine(images, labels, cycle)
            groups = torch.zeros(size, dtype=torch.int64)
            total = signals.sums(images, features, logits, groups, 1, 0.0)
            width = signals.view_size(cycle.stage.resolution, config.model.channels)
            crowd = signals.crowd(total, width)
            return {
                "pixels_spread": crowd.pixels_spread,
                **signals.largest(trained.state.spectra.values()),
            }

        yield f"look.{family}", check


# Cycles as CUDA graphs ----------------------------------------------------------------------------

REPLAYS = 8


def replay_checks(device: torch.device) -> Iterator[Check]:
    """Weights after the same cycles, with and without graphs."""
    for family, precision in itertools.product(SMALL, ("fp32", "bf16")):

        def check(family: str = family, precision: str = precision) -> Lines:
            ends = []
            for capture in (True, False):
                config = small(family, images=256, precision=precision, capture=capture)
                trained = training(config, device)
                for _ in range(2 * (COUNTED + EAGER + REPLAYS)):
                    trained.take()
                ends.append(trained.state)
            return {"apart": weights_apart(*ends)}

        yield f"replay.{family}.{precision}", check


def weights_apart(one: TrainState, other: TrainState) -> float:
    """The largest relative difference of a network's weights: generator's, discriminator's, or EMA's."""
    apart = []
    for name in ("generator", "discriminator", "ema"):
        a, b = (torch.cat([p.flatten() for p in getattr(s, name).parameters()]) for s in (one, other))
        apart.append(((a - b).norm() / a.norm()).item())
    return max(apart)


# The host's part ----------------------------------------------------------------------------------


def host_checks(device: torch.device) -> Iterator[Check]:
    """Draws on the host, and copies from it."""
    for count in (256, 2048):

        def draw(count: int = count) -> Lines:
            draws, numbers = Draws(0, "generator", 0), np.arange(count)
            draws.latents(numbers, 120)
            begun = time.perf_counter()
            for _ in range(5):
                draws.latents(numbers, 120)
            return {"ms": 200 * (time.perf_counter() - begun)}

        yield f"draws.{count}x120", draw

    def copied() -> Lines:
        images = np.zeros((256, 128, 128, 3), np.uint8)

        def copy() -> None:
            torch.from_numpy(images).pin_memory().to(device, non_blocking=True)

        seconds = timed(copy, 10).seconds
        return {"gb_per_s": images.nbytes / seconds / 1e9, "ms": 1000 * seconds}

    yield "copy.256x128x128x3", copied
    yield "nccl", all_reduced


def all_reduced() -> Lines:
    """An all-reduce over NCCL in as many processes as there are GPUs."""
    count = torch.cuda.device_count()
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_all_reduce, (count, f"{folder}/store"), nprocs=count)
    return {"gpus": count}


def _all_reduce(index: int, count: int, file: str) -> None:
    torch.cuda.set_device(index)
    store = dist.FileStore(file, count)
    dist.init_process_group("nccl", rank=index, world_size=count, store=store)
    tensor = torch.full((1 << 20,), float(index + 1), device="cuda")
    dist.all_reduce(tensor)
    if tensor.unique().tolist() != [count * (count + 1) / 2]:
        raise ArithmeticError(f"the sum over {count} GPUs is wrong")
    dist.destroy_process_group()


# Speed --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timing:
    """Of one call: seconds until the device was done, and until the host was."""

    seconds: float
    host_seconds: float


def timed(call: Callable[[], object], count: int = MEASURED) -> Timing:
    """Mean times of `count` calls, which do not wait for each other."""
    torch.cuda.synchronize()
    begun = time.perf_counter()
    call()
    host = time.perf_counter() - begun
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(count):
        call()
    torch.cuda.synchronize()
    return Timing((time.perf_counter() - begun) / count, host)


@dataclass(frozen=True)
class Kernels:
    """Of one call: how many kernels ran, the seconds in which one ran, the longest ones' shares."""

    count: int
    seconds: float
    longest: dict[str, float]


def kernels(call: Callable[[], object]) -> Kernels:
    """What one call launches."""
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        call()
        torch.cuda.synchronize()
    events = [event for event in recorded.events() or () if event.device_type == DeviceType.CUDA]
    run = [event for event in events if not event.name.startswith(("Memcpy", "Memset"))]
    seconds: dict[str, float] = {}
    for event in run:
        seconds[event.name] = seconds.get(event.name, 0.0) + event.time_range.elapsed_us() / 1e6
    total = sum(seconds.values())
    longest = sorted(seconds, key=seconds.__getitem__, reverse=True)[:LONGEST]
    return Kernels(len(run), total, {short(name): seconds[name] / total for name in longest})


def short(kernel: str) -> str:
    """The beginning of a kernel's name, without what all of them say."""
    return kernel.removeprefix("void ").replace("at::native::", "").replace(" ", "")[:80]


def speed(call: Callable[[], object], images: int, device: torch.device) -> Lines:
    """Everything about one kind of cycle, which shows `images` to the discriminator."""
    torch.cuda.reset_peak_memory_stats()
    for _ in range(WARM_UP):
        call()
    timing = timed(call)
    lines: Lines = {
        "images_per_s": images / timing.seconds,
        "cycle_ms": 1000 * timing.seconds,
        "host_ms": 1000 * timing.host_seconds,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
    }
    launched = kernels(call)
    lines |= {"kernels": launched.count, "busy": launched.seconds / timing.seconds}
    lines |= {f"share {name}": share for name, share in launched.longest.items()}
    with Flops() as flops:
        call()
    lines["gflop_per_image"] = flops.total / images / 1e9
    peak = peak_flops(device)
    if peak:
        lines["mfu"] = flops.total / timing.seconds / peak
    return lines


def one_rung(preset: str, resolution: int, batch: int, **training: Any) -> Config:
    """A preset at one rung only, in batches that go through at once, without graphs."""
    values = load_preset(preset)
    full = max(resolution, 8)  # no network ends below
    values["model"] |= {"resolution": full}
    values["phases"] = [{"resolution": resolution, "hold_images": 10**9, "batch": batch}]
    if full > resolution:
        values["phases"] += [{"resolution": full, "hold_images": batch, "batch": batch}]
    values["training"] |= {"capture": False} | training
    values["scale"] = {"workers": 1}
    return Config(**values)


def fits(config: Config, device: torch.device) -> bool:
    """Whether two cycles of the plain loop, which needs the most memory, fit."""
    try:
        with device:
            cycle = plain_cycle(config, device)
            cycle()
            cycle()
    except torch.OutOfMemoryError:
        return False
    return True


def free() -> None:
    """Give back what earlier checks held."""
    gc.collect()
    torch.cuda.empty_cache()


def speed_checks(device: torch.device) -> Iterator[Check]:
    """BigGAN-128 as shipped, in both layouts and beside the plain loop; StyleGAN at 256 px."""
    batch: dict[str, int] = {}
    style = partial(one_rung, "stylegan1024", 256, 32, precision="bf16")
    deep = partial(one_rung, "biggan-deep128", 128, 64, precision="bf16")
    rungs = {
        f"progan.{rung}px": partial(one_rung, "progan1024", rung, size, precision="bf16")
        for rung, size in ((4, 512), (8, 256), (16, 128), (32, 64))
    }

    def biggan(size: int, precision: str = "bf16", **more: Any) -> Config:
        return one_rung("biggan128", 128, size, precision=precision, **more)

    def fitted() -> Lines:
        size = 512
        while size > 2 and not fits(biggan(size), device):
            size //= 2
            free()
        batch["biggan"] = size
        return {"": size}

    def measured(config: Callable[[], Config], plain: bool = False) -> Callable[[], Lines]:
        def check() -> Lines:
            settings = config()
            size = settings.phases[0].batch * settings.training.d_steps
            with device:  # orthogonal weights of this size take a CPU long
                call = plain_cycle(settings, device) if plain else training(settings, device).take
            lines = speed(call, size, device)
            if not plain:
                (cost,) = costs(settings, curriculum_of(settings).spans[0], [1])
                lines["predicted_gb"] = cost.peak_bytes / 1e9
            return lines

        return check

    yield "biggan128.batch", fitted
    yield "biggan128.plain", measured(lambda: biggan(batch["biggan"]), plain=True)
    yield "biggan128.bf16", measured(lambda: biggan(batch["biggan"]))
    yield "biggan128.bf16_nchw", measured(lambda: biggan(batch["biggan"], channels_last=False))
    yield "biggan128.bf16_unfused", measured(lambda: biggan(batch["biggan"], fused_resampling=False))
    yield "biggan128.fp32", measured(lambda: biggan(batch["biggan"] // 2, "fp32"))
    yield "biggan128.bf16_small", measured(lambda: biggan(32))
    yield "stylegan256.bf16", measured(style)
    yield "stylegan256.fp32", measured(lambda: one_rung("stylegan1024", 256, 32))
    for name, config in rungs.items():
        yield name, measured(config)
    yield "biggan_deep128.bf16", measured(deep)
    yield "replay.biggan128", partial(replayed, lambda: biggan(batch["biggan"]), device)
    yield "replay.biggan128_small", partial(replayed, lambda: biggan(32), device)
    yield "replay.biggan128_compiled", partial(replayed, lambda: biggan(256), device, compiled=True)
    for name, config in {"biggan_deep128": deep, "stylegan256": style, **rungs}.items():
        yield f"replay.{name}", partial(replayed, config, device)


def replayed(config: Callable[[], Config], device: torch.device, compiled: bool = False) -> Lines:
    """Times of a cycle: without a graph; then as a graph, the networks compiled if so asked."""
    settings = config()
    timings, launched, operations = [], kernels(lambda: None), 0
    for capture in (False, True):
        changed = {"capture": capture, "compile": compiled and capture}
        settings_here = settings.training.model_copy(update=changed)
        with device:
            trained = training(settings.model_copy(update={"training": settings_here}), device)
        for _ in range(COUNTED + EAGER + 1):
            trained.take()
        timings.append(timed(trained.take))
        before = trained.step.flops
        launched = kernels(trained.take)
        operations = trained.step.flops - before
        del trained
        free()
    eager, timing = timings
    size = settings.phases[0].batch * settings.training.d_steps
    lines: Lines = {
        "images_per_s": size / timing.seconds,
        "cycle_ms": 1000 * timing.seconds,
        "host_ms": 1000 * timing.host_seconds,
        "eager_ms": 1000 * eager.seconds,
        "ratio": eager.seconds / timing.seconds,
        "busy": launched.seconds / timing.seconds,
    }
    peak = peak_flops(device)
    return lines | ({"mfu": operations / timing.seconds / peak} if peak else {})


def plain_cycle(config: Config, device: torch.device) -> Callable[[], object]:
    """The loop that one writes first, on the same networks; each call of the result is one cycle."""
    changed = {"channels_last": False, "fused_resampling": False}
    state = new_state(
        config.model_copy(update={"training": config.training.model_copy(update=changed)}), device
    )
    generator, discriminator = state.generator, state.discriminator
    ema = copy.deepcopy(generator)
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=1e-4, betas=(0.0, 0.999))
    optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=1e-4, betas=(0.0, 0.999))
    loss, stage, data = LOSSES["hinge"], Stage(config.model.resolution), batches(config)
    size, classes = config.phases[0].batch, config.model.classes or 1

    def drawn() -> tuple[torch.Tensor, torch.Tensor]:
        latents = torch.randn(size, config.shape.latents, device=device)
        return latents, torch.randint(0, classes, (size,), device=device)

    def cycle() -> None:
        batch = next(data)
        reals = (
            torch.from_numpy(batch.images).to(device).permute(0, 3, 1, 2).contiguous().float() / 127.5
            - 1
        )
        latents, labels = drawn()
        spectral_iterate(discriminator)
        with torch.autocast(device.type, torch.bfloat16):
            fakes = generator(latents, labels, stage).detach()
            real = discriminator(reals, torch.from_numpy(batch.labels).to(device), stage)
            fake = discriminator(fakes, labels, stage)
            loss_d = loss.discriminator(real.float(), fake.float())
        optimizer_d.zero_grad()
        loss_d.backward()
        optimizer_d.step()
        spectral_iterate(generator)
        latents, labels = drawn()
        with torch.autocast(device.type, torch.bfloat16):
            logits = discriminator(generator(latents, labels, stage), labels, stage)
            loss_g = loss.generator(logits.float(), logits.float())
        optimizer_g.zero_grad()
        loss_g.backward()
        optimizer_g.step()
        with torch.no_grad():
            for mean, weight in zip(ema.parameters(), generator.parameters(), strict=True):
                mean.mul_(0.999).add_(weight, alpha=0.001)

    return cycle


# The command --------------------------------------------------------------------------------------

GROUPS: dict[str, Callable[[torch.device], Iterator[Check]]] = {
    "cycle": cycle_checks,
    "syncs": sync_checks,
    "apart": apart_checks,
    "same": same_checks,
    "look": look_checks,
    "replay": replay_checks,
    "host": host_checks,
    "speed": speed_checks,
}


RUNGS = ("replay.progan.4px", "replay.progan.8px", "replay.progan.16px")
BEST = "replay.biggan128_compiled"


def summary(lines: Lines) -> Lines:
    """What the whole comes down to, of the lines that are there: see the head of this file."""

    def of(name: str) -> float:
        return float(lines.get(name, math.nan))

    replays = [name.rpartition(".")[0] for name in lines if name.startswith("replay.")]
    timed_ones = [name for name in dict.fromkeys(replays) if f"{name}.host_ms" in lines]
    found: Lines = {
        "biggan128_mfu": of(f"{BEST}.mfu"),
        "biggan128_ratio": of(f"{BEST}.images_per_s") / of("biggan128.plain.images_per_s"),
        "low_rung_ratio": min(of(f"{rung}.ratio") for rung in RUNGS),
        "device_busy": min((of(f"{name}.busy") for name in timed_ones), default=math.nan),
        "host_share": max(
            (of(f"{name}.host_ms") / of(f"{name}.cycle_ms") for name in timed_ones), default=math.nan
        ),
    }
    return {name: value for name, value in found.items() if not math.isnan(float(value))}


def show(name: str, value: float | str) -> None:
    """A line `name value`."""
    print(name, f"{value:.6g}" if isinstance(value, float | int) else value, flush=True)


def run(groups: list[str], device: torch.device) -> int:
    """Run the checks of these groups and print their lines; returns how many failed."""
    failures = 0
    seen: Lines = {}
    for group in groups:
        for name, check in GROUPS[group](device):
            try:
                lines = check()
            except Exception as error:
                failures += 1
                traceback.print_exc()
                lines = {" failed:": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}
            for key, value in lines.items():
                label = f"{name}.{key}" if key and not key.startswith(" ") else name + key
                show(label, value)
                seen[label] = value
            free()
    for name, value in summary(seen).items():
        show(name, value)
    return failures


def main() -> int:
    """Check and measure; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--only", nargs="+", choices=GROUPS, default=[*GROUPS], help="these groups alone"
    )
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("NOTHING WAS CHECKED: torch sees no GPU here", file=sys.stderr)
        return NOTHING_CHECKED
    device = torch.device("cuda", 0)
    os.environ.setdefault("LOCAL_RANK", "0")
    print("device", torch.cuda.get_device_name(device))
    print("torch", torch.__version__, flush=True)
    failures = run(options.only, device)
    print("failed_checks", failures)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
