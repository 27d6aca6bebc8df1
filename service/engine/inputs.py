"""What a cycle needs from the host: drawn by sample numbers, and moved to the same places each time.

All of a cycle's inputs are on the device before it begins, and nothing else of it depends on the clock.
So the device never waits for a draw, and a cycle can be captured once and replayed on other inputs.
"""

import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.losses import LOSSES
from service.config import Config
from service.data.dataset import Batch
from service.engine.augment import DRAWS
from service.engine.curriculum import Cycle
from service.engine.device import side_stream
from service.engine.distributed import Workers
from service.random.draws import Draws

Arrays = dict[str, NDArray[Any]]
Inputs = dict[str, Tensor]
"""Tensors of a step by name: the share's images, labels, draws [n, …], or numbers of the whole cycle."""

AHEAD = 2
"""So many cycles' inputs are on their way to a GPU while it computes."""


class Sources:
    """Draws a worker's share of what each cycle needs.

    `counts` says how many images of each class the data has, if generated images follow it.
    """

    def __init__(
        self,
        config: Config,
        seed: int,
        attempt: int,
        workers: Workers,
        counts: NDArray[np.int64] | None = None,
    ):
        self._config, self._workers, self._counts = config, workers, counts
        self.draws_d = Draws(seed, "discriminator", attempt)
        self.draws_g = Draws(seed, "generator", attempt)
        self._paired = LOSSES[config.training.loss].paired
        self._float = np.float64 if config.training.precision == "fp64" else np.float32

    def cycle(self, cycle: Cycle, batches: Iterator[Batch], layers: int) -> Iterator[Arrays]:
        """The inputs of the discriminator's steps, then the generator's, then the numbers of the cycle.

        For a paired loss a real image comes with each generated one, which has its label.

        `batches` yields this worker's share of each batch, which stays until the next is taken. `layers`
        are those of a generator with styles. RuntimeError if a batch is for another clock.
        """
        for start in cycle.steps:
            yield self._discriminator(cycle, start, batches, layers)
        numbers, draws = self._workers.share(cycle.start, cycle.span.batch), self.draws_g
        arrays = self.drawn(draws, numbers, layers) | self._changes(draws, numbers, "fake")
        if self._paired:
            arrays |= self._reals(batches, cycle.steps.stop) | self._changes(draws, numbers, "real")
        yield arrays
        yield self._numbers(cycle)

    def drawn(self, draws: Draws, numbers: NDArray[np.int64], layers: int) -> Arrays:
        """Latents, labels and, for a generator with styles, what mixes them and seeds of their noise."""
        latents, training = self._config.shape.latents, self._config.training
        arrays: Arrays = {
            "latents": draws.latents(numbers, latents).astype(self._float),
            "labels": draws.labels(numbers, self._config.model.classes, self._counts),
        }
        if not self._config.shape.has_styles:
            return arrays
        arrays["noise"] = np.array(draws.seeds(numbers, "noise"))
        if training.style_mixing:
            # from a random layer on, for a share of images (Karras et al. 2019, §3.1)
            chance, place = draws.uniforms(numbers, "mixing", 2).T
            first = 1 + (place * (layers - 1)).astype(np.int64)
            arrays["mixed_from"] = np.where(chance < training.style_mixing, first, layers)
            mixed = draws.latents(numbers, latents, "mixed latents")
            arrays["mixed_latents"] = mixed.astype(self._float)
        return arrays

    def _discriminator(self, cycle: Cycle, start: int, batches: Iterator[Batch], layers: int) -> Arrays:
        training, draws = self._config.training, self.draws_d
        numbers = self._workers.share(start, cycle.span.batch)
        arrays = self.drawn(draws, numbers, layers) | self._reals(batches, start)
        if training.gradient_penalty:
            arrays["between"] = draws.uniforms(numbers, "penalty", 1)[:, 0].astype(self._float)
        if training.slope_sigma:
            for side in ("real", "fake"):
                arrays[f"{side}_nudges"] = np.array(draws.seeds(numbers, f"{side} nudge"))
        return arrays | self._changes(draws, numbers, "real") | self._changes(draws, numbers, "fake")

    def _changes(self, draws: Draws, numbers: NDArray[np.int64], side: str) -> Arrays:
        """What decides how images are augmented."""
        count = DRAWS.get(self._config.training.augment, 0)
        if not count:
            return {}
        changes = draws.uniforms(numbers, f"augment {side}", count)
        return {f"{side}_changes": changes.astype(self._float)}

    def _reals(self, batches: Iterator[Batch], start: int) -> Arrays:
        batch = next(batches)
        if batch.clock != start:
            raise RuntimeError(f"the loader gave the batch for clock {batch.clock}, but it is {start}")
        arrays: Arrays = {"images": batch.images, "real_labels": batch.labels}
        return arrays | {"labels": batch.labels} if self._paired else arrays

    def _numbers(self, cycle: Cycle) -> Arrays:
        """Alpha, and the shares of today's weights and of today's w in their running averages."""
        training, images = self._config.training, cycle.span.cycle_images
        half_life = training.at(cycle.start).ema_half_life_images
        half_life = min(half_life, training.ema_rampup * cycle.end)
        values = {
            "alpha": cycle.stage.alpha,
            "weights_share": 1 - _decay(images, half_life),
            "styles_share": 1 - _decay(images, training.w_average_half_life_images),
            "augment_move": images / training.augment_images,
        }
        return {name: np.array(value, self._float) for name, value in values.items()}


def _decay(images: int, half_life: float) -> float:
    """The share that remains after `images`; of a half-life of 0, nothing."""
    return 0.5 ** (images / half_life) if half_life else 0.0


class Places:
    """Tensors on the device that take one cycle's inputs after the other, as long as shapes stay.

    On a GPU, inputs go through pinned memory and a stream of their own to where they wait until the
    cycle begins, so they travel while earlier cycles compute.
    """

    def __init__(self, device: torch.device):
        self._inputs = _Held(device)
        self._lanes = [_Lane(device) for _ in range(AHEAD)] if device.type == "cuda" else []
        self._turn = 0
        self.waited_s = 0.0

    def fill(self, steps: Iterable[Arrays]) -> list[Inputs]:
        """The inputs on the device; they stay until the next call.

        `waited_s` is then how long the host waited, because it is as far ahead as it may be.
        """
        if not self._lanes:
            self._inputs.take(_tensors(steps))
        else:
            self._turn = (self._turn + 1) % len(self._lanes)
            self.waited_s = self._lanes[self._turn].send(_tensors(steps), self._inputs)
        return self._inputs.steps


class _Held:
    """Tensors that are made for what they take first, and take it again and again."""

    def __init__(self, device: torch.device, pinned: bool = False):
        self._device, self._pinned = device, pinned
        self.steps: list[Inputs] = []

    def take(self, given: Iterable[Inputs]) -> None:
        """Copy what is given, step by step."""
        for i, step in enumerate(given):
            if i == len(self.steps):
                self.steps.append({name: self._place(tensor) for name, tensor in step.items()})
            for name, tensor in step.items():
                self.steps[i][name].copy_(tensor, non_blocking=True)

    def _place(self, tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device=self._device, pin_memory=self._pinned)


class _Lane:
    """One cycle's inputs on their way to a GPU: in pinned memory, and where they wait there."""

    def __init__(self, device: torch.device):
        self._pinned, self._waiting = _Held(torch.device("cpu"), pinned=True), _Held(device)
        self._stream = side_stream(device, "inputs")
        self._begun = torch.cuda.Event(blocking=True)

    def send(self, steps: Iterable[Inputs], inputs: _Held) -> float:
        """Bring the steps into `inputs`, before what is computed next; returns seconds of waiting."""
        start = time.perf_counter()
        self._begun.synchronize()  # only the host waits, and only for the cycle before the last to begin
        waited_s = time.perf_counter() - start
        self._pinned.take(steps)
        with torch.cuda.stream(self._stream):
            self._waiting.take(self._pinned.steps)
        current = torch.cuda.current_stream()
        current.wait_stream(self._stream)
        inputs.take(self._waiting.steps)
        self._begun.record(current)
        return waited_s


def _tensors(steps: Iterable[Arrays]) -> Iterator[Inputs]:
    for step in steps:
        yield {name: torch.from_numpy(array) for name, array in step.items()}
