"""What it costs that workers train together: `python -m benchmarks.scaling`.

BigGAN at 32 px, width 16, 64 images a worker, one core each. Two workers that take steps together are
measured against two that train alone at the same time, in turns, so that both share the machine alike:
  alone_images_per_s    two processes, each with the bare step, which exchange nothing
  together_images_per_s two workers of one training with whole groups of batch norm: gradients alone
                        are exchanged
  shared_images_per_s   the same, with batch norm over the whole batch of both
  scaling_ratio         together over alone
  shared_ratio          shared over alone
"""

import statistics
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.step import BATCH, batches, configure
from benchmarks.variant import Variant
from service.cli import Options, parse, run_command
from service.config import Config
from service.driver.settle import has_bf16_units
from service.engine.curriculum import curriculum_of
from service.engine.distributed import Workers
from service.engine.state import new_state
from service.engine.step import Step

WORKERS, ROUNDS, CYCLES = 2, 5, 4


def member(config: Config, index: int, count: int, store: str) -> Callable[[], object]:
    """One of `count` workers, which meet at the file `store`; each call of the result is one cycle."""
    torch.set_num_threads(1)
    if count > 1:
        dist.init_process_group("gloo", rank=index, world_size=count, store=dist.FileStore(store, count))
    workers = Workers(index, count, torch.device("cpu"))
    step = Step(config, new_state(config, workers.device), workers)
    cycles = curriculum_of(config).cycles(0, 10**9)
    data = batches(every=BATCH * count)
    return lambda: step.cycle(next(cycles), data)["loss_g"].item()


def start(config: Config, norm_group: int | None, together: bool, folder: Path) -> list[Variant]:
    """Two processes, ready to take cycles; together their batch is twice as large."""
    count = WORKERS if together else 1
    phases = [phase.model_copy(update={"batch": BATCH * count}) for phase in config.phases]
    training = config.training.model_copy(update={"norm_group": norm_group})
    changed = config.model_copy(update={"phases": phases, "training": training})
    store = str(folder / f"store-{norm_group}")  # whose name is the pair's own
    pair = [
        Variant(member, changed, index % count, count, store, waits=False) for index in range(WORKERS)
    ]
    for variant in pair:  # workers wait for each other
        _ = variant.first
    return pair


def rate(pair: list[Variant]) -> float:
    """Images a second of both, which run at the same time."""
    with ThreadPoolExecutor(WORKERS) as pool:
        seconds = list(pool.map(lambda variant: variant.call(CYCLES)[0], pair))
    return sum(CYCLES * BATCH / each for each in seconds)


def main(arguments: Sequence[str]) -> None:
    """Measure, and print lines `name value`."""
    parse(Options, arguments, "benchmarks.scaling", __doc__ or "")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = configure(folder, "bf16" if has_bf16_units() else "fp32")
        pairs = {
            "alone": start(config, None, False, folder),
            "together": start(config, BATCH, True, folder),
            "shared": start(config, None, True, folder),
        }
        measured: dict[str, list[float]] = {kind: [] for kind in pairs}
        for _ in range(ROUNDS):
            for kind, pair in pairs.items():
                measured[kind].append(rate(pair))
        for pair in pairs.values():
            for variant in pair:
                variant.close()
    rates = {kind: statistics.median(values) for kind, values in measured.items()}
    for kind, value in rates.items():
        print(f"{kind}_images_per_s {value:.3f}")
    print(f"scaling_ratio {rates['together'] / rates['alone']:.3f}")
    print(f"shared_ratio {rates['shared'] / rates['alone']:.3f}")


if __name__ == "__main__":
    run_command(main)
