"""One cycle: the discriminator's steps, each on its own real images, then one generator step.

Nothing here waits for the device, reads, writes or logs; measurements stay on the device.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models import growth
from models.growth import Mixing
from models.layers import Groups, spectral_iterate, use_groups, use_workers
from models.losses import LOSSES, add_orthogonal_gradient, drift, gradient_penalty, r1_penalty
from service.config import Config
from service.config.portions import Portions, portions
from service.data.dataset import Batch
from service.engine.curriculum import Cycle, Span
from service.engine.distributed import Workers
from service.engine.state import TrainState
from service.random.draws import Draws

Measures = dict[str, Tensor]
"""A cycle's measurements by name: numbers that stay on the device until they are read."""

MEASURES = (
    "loss_d",
    "loss_g",
    "penalty",
    "logit_real",
    "logit_fake",
    "margin",
    "accuracy_real",
    "accuracy_fake",
    "grad_norm_d",
    "grad_norm_g",
    "nonfinite",
)
FINITE = ("loss_d", "loss_g", "grad_norm_d", "grad_norm_g")
"""A cycle in which one of these is not finite counts as `nonfinite`."""


class Step:
    """Takes the cycles of a run. `cycle` advances the state by one and returns its measurements.

    `most` says how many images of a share may go through at a time in a span; None for all of them. It
    changes speed and memory, and nothing else.
    """

    def __init__(
        self,
        config: Config,
        state: TrainState,
        workers: Workers,
        most: Callable[[Span], int | None] = lambda span: None,
    ):
        self.config = config
        self.training = config.training
        self.state = state
        self.workers = workers
        self.loss = LOSSES[config.training.loss]
        self.latents = config.shape.latents
        self.has_styles = config.shape.has_styles
        self.dtype = torch.float64 if config.training.precision == "fp64" else torch.float32
        self.draws_d = Draws(state.seed, "discriminator", state.attempt)
        self.draws_g = Draws(state.seed, "generator", state.attempt)
        self._ema: list[Tensor] = list(state.ema.parameters())
        self._weights: list[Tensor] = list(state.generator.parameters())
        self._ema_buffers = list(state.ema.buffers())
        self._buffers = list(state.generator.buffers())
        self._span: Span | None = None
        self._most = most

    def cycle(self, cycle: Cycle, batches: Iterator[Batch]) -> Measures:
        """Advance the state from `cycle.start` to `cycle.end`.

        `batches` yields this worker's share of each batch in turn. Returns MEASURES, means over the
        cycle on this worker. RuntimeError if a batch is for another clock.
        """
        if cycle.span is not self._span:
            self._enter(cycle)
        dealt = self.deal(cycle.span, cycle.span.batch)
        steps = [self._discriminator_step(cycle, start, batches, dealt) for start in cycle.batches()]
        measures = _mean(steps) | self._generator_step(cycle, dealt)
        self._average(cycle)
        self.state.clock = cycle.end
        watched = torch.stack([measures[name] for name in FINITE])
        measures["margin"] = measures["logit_real"] - measures["logit_fake"]
        measures["nonfinite"] = 1 - watched.sum().isfinite().to(watched.dtype)
        return {name: measures[name] for name in MEASURES}

    def deal(self, span: Span, batch: int) -> Portions:
        """How the worker's share of a batch of this span, or of a part of it, goes through next.

        What the networks' layers measure together is set for it.
        """
        dealt = portions(batch, self.config.group(span.batch), self.workers.count, self._most(span))
        peers = self.workers.peers(dealt.peers)
        for network in (self.state.generator, self.state.discriminator):
            use_groups(network, Groups(dealt.groups, dealt.peers, peers.sum, peers.gather))
        return dealt

    @torch.no_grad()
    def imagine(
        self, draws: Draws, numbers: NDArray[np.int64], labels: NDArray[np.int64], cycle: Cycle
    ) -> Tensor:
        """The raw generator's images of these draws and labels; does not change the training.

        They are a portion of what `deal` was last called for.
        """
        with self._autocast():
            fakes, _ = self._generate(self.state.generator, draws, numbers, cycle, labels)
        return fakes.to(self.dtype)

    @torch.no_grad()
    def examine(self, images: Tensor, labels: NDArray[np.int64], cycle: Cycle) -> tuple[Tensor, Tensor]:
        """The discriminator's features [n, f] and logits [n]; does not change the training."""
        discriminator = self.state.discriminator
        with self._autocast():
            features = discriminator.features(images, cycle.stage)
            return features, discriminator.judge(features, self._to_device(labels))

    def pixels(self, images: NDArray[np.uint8], cycle: Cycle) -> Tensor:
        """Real images uint8 [n, h, w, c] as the discriminator sees them: [n, c, h, w] in [-1, 1]."""
        return growth.fade_images(self._to_pixels(images), cycle.stage)

    def _enter(self, cycle: Cycle) -> None:
        """Freeze what the span does not use, wrap the networks again, and set up the optimizers."""
        state, span = self.state, cycle.span
        use_workers(state.generator, self.workers.sum)
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
            if self.training.reset_adam and span.new_rung and cycle.start == span.start:
                optimizer.state.clear()
        self._span = span

    def _discriminator_step(
        self, cycle: Cycle, start: int, batches: Iterator[Batch], dealt: Portions
    ) -> Measures:
        state, span = self.state, cycle.span
        spectral_iterate(state.discriminator)
        state.optimizer_d.zero_grad()
        batch, share = _batch_for(start, batches), self.workers.share(start, span.batch)
        parts = []
        for i in range(dealt.count):
            places = dealt.places(i)
            numbers = share[places]
            reals = self.pixels(batch.images[places], cycle)
            real_labels = self._to_device(batch.labels[places])
            with torch.no_grad(), self._autocast():
                fakes, labels = self._generate(state.generator, self.draws_d, numbers, cycle)
            fakes = fakes.to(self.dtype)
            penalty = self._penalise(reals, real_labels, fakes, numbers, cycle, start, dealt.count)
            last = i == dealt.count - 1
            with self.workers.accumulate([self._discriminator], last):
                with self._autocast():
                    real, fake = self._judge(reals, real_labels, fakes, labels, cycle)
                loss = self.loss.discriminator(real, fake)
                (loss + self.training.drift * drift(real)).div(dealt.count).backward()
            parts.append(self._measure(loss.detach(), penalty.detach(), real.detach(), fake.detach()))
        norm = _gradient_norm(self._active_d)
        state.optimizer_d.step()
        return _mean(parts) | {"grad_norm_d": norm}

    def _measure(self, loss: Tensor, penalty: Tensor, real: Tensor, fake: Tensor) -> Measures:
        """Measures of one portion: loss, penalty, and those of the real and the fake logits."""
        boundary = self.loss.boundary
        return {
            "loss_d": loss,
            "penalty": penalty,
            "logit_real": real.mean(),
            "logit_fake": fake.mean(),
            "accuracy_real": (real > boundary).to(real.dtype).mean(),
            "accuracy_fake": (fake < boundary).to(fake.dtype).mean(),
        }

    def _judge(
        self, reals: Tensor, real_labels: Tensor, fakes: Tensor, labels: Tensor, cycle: Cycle
    ) -> tuple[Tensor, Tensor]:
        """Logits of real and of fake images, in one forward unless the network mixes its batch."""
        if self.state.discriminator.mixes_batch:
            real = self._discriminator(reals, real_labels, cycle.stage)
            fake = self._discriminator(fakes, labels, cycle.stage)
        else:
            images = torch.cat([reals, fakes])
            logits = self._discriminator(images, torch.cat([real_labels, labels]), cycle.stage)
            real, fake = logits.split([len(reals), len(fakes)])
        return real.to(self.dtype), fake.to(self.dtype)

    def _penalise(
        self,
        reals: Tensor,
        labels: Tensor,
        fakes: Tensor,
        numbers: NDArray[np.int64],
        cycle: Cycle,
        start: int,
        portions: int,
    ) -> Tensor:
        """Add the gradients of all due penalties to the discriminator's; returns the penalties' sum.

        Images between real and fake have the real image's label.

        This runs in full precision and apart from the loss. Gradients of gradients do not reach every
        parameter, and DDP would wait for the others. DDP also exchanges the gradients that are there
        before its backward.
        """
        training, step = self.training, (start - cycle.span.start) // cycle.span.batch
        total = reals.new_zeros(())

        def discriminate(images: Tensor) -> Tensor:
            return self.state.discriminator(images, labels, cycle.stage)

        if training.r1 and step % training.r1_every == 0:
            weight = training.r1 * training.r1_every
            total = total + weight * r1_penalty(discriminate, reals)
        if training.gradient_penalty and step % training.gradient_penalty_every == 0:
            weight = training.gradient_penalty * training.gradient_penalty_every
            shares = self._to_device(self.draws_d.uniforms(numbers, "penalty", 1))
            target = training.gradient_penalty_target
            total = total + weight * gradient_penalty(discriminate, reals, fakes, shares, target)
        if total.requires_grad:
            (total / portions).backward()
        return total

    def _generator_step(self, cycle: Cycle, dealt: Portions) -> Measures:
        state, span = self.state, cycle.span
        spectral_iterate(state.generator)
        state.optimizer_g.zero_grad()
        _require_gradients(self._active_d, False)
        share, losses = self.workers.share(cycle.start, span.batch), []
        for i in range(dealt.count):
            numbers = share[dealt.places(i)]
            last = i == dealt.count - 1
            with self.workers.accumulate([self._generator], last):
                with self._autocast():
                    fakes, labels = self._generate(self._generator, self.draws_g, numbers, cycle)
                    logits = state.discriminator(fakes.to(self.dtype), labels, cycle.stage)
                loss = self.loss.generator(logits.to(self.dtype))
                (loss / dealt.count).backward()
            losses.append(loss.detach())
        _require_gradients(self._active_d, True)
        if self.training.orthogonal:
            add_orthogonal_gradient(state.generator, self.training.orthogonal)
        norm = _gradient_norm(self._active_g)
        state.optimizer_g.step()
        return {"loss_g": torch.stack(losses).mean(), "grad_norm_g": norm}

    @torch.no_grad()
    def _average(self, cycle: Cycle) -> None:
        """Move the EMA towards the weights with a half-life in images; copy the buffers."""
        state, training, span = self.state, self.training, cycle.span
        if self.has_styles:
            numbers = self.workers.share(cycle.start, span.batch)
            decay = _decay(span.cycle_images, training.w_average_half_life_images)
            state.generator.average_styles(*self._draw(self.draws_g, numbers), decay)
        half_life = min(float(training.ema_half_life_images), training.ema_rampup * cycle.end)
        torch._foreach_lerp_(self._ema, self._weights, 1 - _decay(span.cycle_images, half_life))
        if self._buffers:
            torch._foreach_copy_(self._ema_buffers, self._buffers)

    def _generate(
        self,
        network: nn.Module,
        draws: Draws,
        numbers: NDArray[np.int64],
        cycle: Cycle,
        fixed_labels: NDArray[np.int64] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Images of `network`, the generator as it is or wrapped; labels are drawn unless fixed."""
        latents, labels = self._draw(draws, numbers)
        labels = labels if fixed_labels is None else self._to_device(fixed_labels)
        if not self.has_styles:
            return network(latents, labels, cycle.stage), labels
        generator = self.state.generator
        mixing = self._mix(draws, numbers, generator.layer_count(cycle.stage))
        noise = self._draw_noise(draws, numbers, cycle)
        return network(latents, labels, cycle.stage, mixing, noise), labels

    def _mix(self, draws: Draws, numbers: NDArray[np.int64], layers: int) -> Mixing | None:
        """Second latents from a random layer on, for a share of images (Karras et al. 2019, §3.1)."""
        if not self.training.style_mixing:
            return None
        chance, place = draws.uniforms(numbers, "mixing", 2).T
        first = np.where(
            chance < self.training.style_mixing, 1 + (place * (layers - 1)).astype(int), layers
        )
        latents = draws.latents(numbers, self.latents, "mixed latents")
        return Mixing(self._to_device(latents).to(self.dtype), self._to_device(first))

    def _draw_noise(self, draws: Draws, numbers: NDArray[np.int64], cycle: Cycle) -> list[Tensor]:
        return self.state.generator.draw_noise(draws.seeds(numbers, "noise"), cycle.stage)

    def _draw(self, draws: Draws, numbers: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        latents = draws.latents(numbers, self.latents)
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


def _batch_for(clock: int, batches: Iterator[Batch]) -> Batch:
    """The next batch, which must be the one for this clock."""
    batch = next(batches)
    if batch.clock != clock:
        raise RuntimeError(f"the loader gave the batch for clock {batch.clock}, but it is {clock}")
    return batch


def _mean(parts: Sequence[Measures]) -> Measures:
    """The means of measures that have the same names."""
    table = torch.stack([torch.stack([*part.values()]) for part in parts])
    return dict(zip(parts[0], table.mean(0).unbind(), strict=True))


def _decay(images: int, half_life: float) -> float:
    """The share that remains after `images`."""
    return 0.5 ** (images / half_life)


def _require_gradients(parameters: list[nn.Parameter], required: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(required)


def _gradient_norm(parameters: list[nn.Parameter]) -> Tensor:
    grads = [p.grad for p in parameters if p.grad is not None]
    return torch.nn.utils.get_total_norm(grads)
