"""One cycle: the discriminator's steps, each on its own real images, then one of the generator.

Nothing here waits for the device, reads, writes or logs; what is measured stays on the device.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models import growth
from models.layers import spectral_iterate, use_reduce
from models.losses import LOSSES
from service.config import Config
from service.data.loader import Batch
from service.training.curriculum import Cycle, Span
from service.training.distributed import Workers
from service.training.random import Draws
from service.training.state import TrainState

MEASURES = (
    "loss_d",
    "loss_g",
    "logit_real",
    "logit_fake",
    "margin",
    "grad_norm_d",
    "grad_norm_g",
)


class Step:
    """Takes the cycles of a run. `cycle` advances the state by one and returns what it measured."""

    def __init__(self, config: Config, state: TrainState, workers: Workers):
        self.config = config
        self.training = config.training
        self.state = state
        self.workers = workers
        self.loss = LOSSES[config.training.loss]
        self.dtype = torch.float64 if config.training.precision == "fp64" else torch.float32
        self.draws_d = Draws(state.seed, "discriminator", state.attempt)
        self.draws_g = Draws(state.seed, "generator", state.attempt)
        self._ema: list[Tensor] = list(state.ema.parameters())
        self._weights: list[Tensor] = list(state.generator.parameters())
        self._ema_buffers = list(state.ema.buffers())
        self._buffers = list(state.generator.buffers())
        self._span: Span | None = None
        use_reduce(state.generator, workers.sum)

    def cycle(self, cycle: Cycle, batches: Iterator[Batch]) -> Tensor:
        """Advance the state from `cycle.start` to `cycle.end`.

        `batches` gives this worker's share of each micro-batch in turn. Returns MEASURES, means over
        the cycle on this worker, as a float64 or float32 tensor on the device.
        """
        if cycle.span is not self._span:
            self._enter(cycle)
        batch_starts = range(cycle.start, cycle.end, cycle.span.batch)
        d_measures = torch.stack(
            [self._discriminator_step(cycle, start, batches) for start in batch_starts]
        ).mean(0)
        loss_g, norm_g = self._generator_step(cycle)
        self._average(cycle)
        self.state.images = cycle.end
        loss_d, real, fake, norm_d = d_measures.unbind()
        return torch.stack([loss_d, loss_g, real, fake, real - fake, norm_d, norm_g])

    def _enter(self, cycle: Cycle) -> None:
        """Freeze what the span does not use and wrap anew what it does; set its learning rates."""
        state, span = self.state, cycle.span
        self._active_g = state.generator.activate(cycle.stage)
        self._active_d = state.discriminator.activate(cycle.stage)
        self._generator = self.workers.wrap(state.generator)
        self._discriminator = self.workers.wrap(state.discriminator)
        for optimizer, rate in (
            (state.optimizer_g, self.training.lr_generator),
            (state.optimizer_d, self.training.lr_discriminator),
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate * span.lr_scale
        self._span = span

    def _discriminator_step(self, cycle: Cycle, start: int, batches: Iterator[Batch]) -> Tensor:
        state, span = self.state, cycle.span
        spectral_iterate(state.discriminator)
        state.optimizer_d.zero_grad()
        measures = []
        for i in range(span.accumulation):
            batch = next(batches)
            numbers = self.workers.share(start + i * span.micro_batch, span.micro_batch)
            reals = growth.fade_images(self._to_pixels(batch.images), cycle.stage)
            real_labels = self._to_device(batch.labels)
            latents, labels = self._draw(self.draws_d, numbers)
            last = i == span.accumulation - 1
            with self.workers.accumulate([self._discriminator], last):
                with self._autocast():
                    with torch.no_grad():
                        fakes = state.generator(latents, labels, cycle.stage)
                    real, fake = self._judge(reals, real_labels, fakes, labels, cycle)
                loss = self.loss.discriminator(real, fake)
                (loss / span.accumulation).backward()
            measures.append(torch.stack([loss, real.mean(), fake.mean()]).detach())
        norm = _gradient_norm(self._active_d)
        state.optimizer_d.step()
        return torch.cat([torch.stack(measures).mean(0), norm[None]])

    def _judge(
        self, reals: Tensor, real_labels: Tensor, fakes: Tensor, labels: Tensor, cycle: Cycle
    ) -> tuple[Tensor, Tensor]:
        """Logits of real and of fake images, in one forward unless the network mixes its batch."""
        fakes = fakes.to(reals.dtype)
        if self.state.discriminator.mixes_batch:
            real = self._discriminator(reals, real_labels, cycle.stage)
            fake = self._discriminator(fakes, labels, cycle.stage)
        else:
            images = torch.cat([reals, fakes])
            logits = self._discriminator(images, torch.cat([real_labels, labels]), cycle.stage)
            real, fake = logits.split([len(reals), len(fakes)])
        return real.to(self.dtype), fake.to(self.dtype)

    def _generator_step(self, cycle: Cycle) -> tuple[Tensor, Tensor]:
        state, span = self.state, cycle.span
        spectral_iterate(state.generator)
        state.optimizer_g.zero_grad()
        _require_gradients(self._active_d, False)
        losses = []
        for i in range(span.accumulation):
            numbers = self.workers.share(cycle.start + i * span.micro_batch, span.micro_batch)
            latents, labels = self._draw(self.draws_g, numbers)
            last = i == span.accumulation - 1
            with self.workers.accumulate([self._generator], last):
                with self._autocast():
                    fakes = self._generator(latents, labels, cycle.stage)
                    logits = state.discriminator(fakes.to(self.dtype), labels, cycle.stage)
                loss = self.loss.generator(logits.to(self.dtype))
                (loss / span.accumulation).backward()
            losses.append(loss.detach())
        _require_gradients(self._active_d, True)
        norm = _gradient_norm(self._active_g)
        state.optimizer_g.step()
        return torch.stack(losses).mean(), norm

    @torch.no_grad()
    def _average(self, cycle: Cycle) -> None:
        """Move the EMA towards the weights, by half-life in images; its buffers follow at once."""
        half_life = min(float(self.training.ema_half_life_images), self.training.ema_rampup * cycle.end)
        decay = 0.5 ** (cycle.span.cycle_images / half_life)
        torch._foreach_lerp_(self._ema, self._weights, 1 - decay)
        torch._foreach_copy_(self._ema_buffers, self._buffers)

    def _draw(self, draws: Draws, numbers: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        latents = draws.latents(numbers, self.config.model.latents)
        labels = draws.labels(numbers, self.config.model.classes)
        return self._to_device(latents).to(self.dtype), self._to_device(labels)

    def _to_pixels(self, images: NDArray[np.uint8]) -> Tensor:
        """uint8 [n, h, w, c] as floats [n, c, h, w] in [-1, 1] on the device."""
        pixels = self._to_device(images).permute(0, 3, 1, 2)
        pixels = pixels.to(self.dtype) / 127.5 - 1
        return pixels if self.training.channels_last else pixels.contiguous()

    def _to_device(self, array: NDArray) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.workers.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.workers.device, non_blocking=True)

    def _autocast(self) -> torch.autocast:
        enabled = self.training.precision == "bf16"
        return torch.autocast(self.workers.device.type, torch.bfloat16, enabled=enabled)


def _require_gradients(parameters: list[nn.Parameter], required: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(required)


def _gradient_norm(parameters: list[nn.Parameter]) -> Tensor:
    grads = [p.grad for p in parameters if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
