"""One cycle: the discriminator's steps, each on its own real images, then one generator step.

What the host must do for a cycle is done before it: its inputs are drawn, and brought to the device. The
cycle itself depends on nothing else, waits for nothing and reads nothing back, so a GPU can replay it
as one graph; measurements stay on the device.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models import Stage, growth
from models.growth import Growing, LiveStage, Mixing
from models.layers import (
    Groups,
    ScaledLayer,
    holding,
    spectral_iterate,
    use_fused_attention,
    use_groups,
    use_workers,
)
from models.losses import (
    LOSSES,
    add_orthogonal_gradient,
    drift,
    gradient_penalty,
    rough_slope_penalty,
    slope_penalty,
)
from models.noise import normals
from service.config import Config
from service.config.portions import Portions, portions
from service.data.dataset import Batch
from service.engine.augment import augment
from service.engine.capture import EAGER, Replays, can_capture
from service.engine.compile import Compiled
from service.engine.curriculum import Cycle, Span
from service.engine.device import full_precision, fuses_attention
from service.engine.distributed import Workers
from service.engine.flops import Flops
from service.engine.gradients import Gradients
from service.engine.inputs import Inputs, Places, Sources
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
    "augment_p",
)
FINITE = ("loss_d", "loss_g", "grad_norm_d", "grad_norm_g")
"""A cycle in which one of these is not finite counts as `nonfinite`."""

COUNTED = 2
"""A kind's cycle whose operations are counted: the first one is where networks are compiled."""

Call = Callable[..., Tensor]


class Due(NamedTuple):
    """Which penalties are due at a discriminator step."""

    r1: bool
    r2: bool
    between: bool


class Step:
    """Takes the cycles of a run. `cycle` advances the state by one and returns its measurements.

    `most` says how many images of a share may go through at a time in a span; None for all of them. It
    changes speed and memory, and nothing else. Generated images have each class in proportion to
    `counts`, one for each; None for all classes as often. `flops` adds up the operations of this
    worker's cycles, `waited_s` how long the host waited for a GPU that it was too far ahead of.
    """

    def __init__(
        self,
        config: Config,
        state: TrainState,
        workers: Workers,
        most: Callable[[Span], int | None] = lambda span: None,
        counts: NDArray[np.int64] | None = None,
    ):
        self.config = config
        self.training = config.training
        self.state = state
        self.workers = workers
        self.loss = LOSSES[config.training.loss]
        self.has_styles = config.shape.has_styles
        self.dtype = torch.float64 if config.training.precision == "fp64" else torch.float32
        self.sources = Sources(config, state.seed, state.attempt, workers, counts)
        self._low = torch.bfloat16 if config.training.precision == "bf16" else None
        self._most = most
        self._drives_augmentation = self.training.augment == "ada" and self.training.augment_p is None
        self._generator: Call = state.generator
        self._discriminator: Call = state.discriminator
        if config.training.compile:
            self._generator = Compiled(state.generator)
            self._discriminator = Compiled(state.discriminator)
        self._ema: list[Tensor] = list(state.ema.parameters())
        self._weights: list[Tensor] = list(state.generator.parameters())
        self._ema_buffers = list(state.ema.buffers())
        self._buffers = list(state.generator.buffers())
        self._span: Span | None = None
        self._frozen: Sequence[str] = ()
        self._values = self.training.at(state.clock)
        self.flops = 0
        self.waited_s = 0.0
        self._flops: dict[Sequence[Due], int] = {}
        self._taken: Counter[Sequence[Due]] = Counter()
        if fuses_attention(workers.device):
            exact = (config.training.r1 or config.training.r2) and not config.training.slope_sigma
            once = not (exact or config.training.gradient_penalty)
            use_fused_attention(state.generator, True)
            use_fused_attention(state.discriminator, once)

    def cycle(self, cycle: Cycle, batches: Iterator[Batch]) -> Measures:
        """Advance the state from `cycle.start` to `cycle.end`.

        `batches` yields this worker's share of each batch in turn. Returns MEASURES, means over the
        cycle on this worker, which stay until the next call. RuntimeError if a batch is for another
        clock.
        """
        span = cycle.span
        frozen = self.config.run.frozen_at(cycle.start)
        values = self.training.at(cycle.start)
        enters = span is not self._span or frozen != self._frozen
        if enters:
            self._enter(cycle, frozen)
        if enters or values != self._values:
            self._values = values
            self._follow_schedules(cycle)
        inputs = self._places.fill(self.sources.cycle(cycle, batches, self._layers(cycle.stage)))
        self.waited_s += self._places.waited_s
        dealt = self.deal(span, span.batch)
        due = self._due(cycle)
        stage = LiveStage(span.resolution, inputs[-1]["alpha"]) if span.fading else cycle.stage

        def work() -> Measures:
            return self._advance(stage, inputs, dealt, due)

        self._taken[due] += 1
        if self._taken[due] == COUNTED:
            measures = self._count(due, work)
        else:
            measures = self._replays(due, work) if self._replays else work()
        self.flops += self._flops.get(due, 0)
        self.state.clock = cycle.end
        return measures

    @property
    def settles(self) -> int:
        """After so many cycles of a kind, each takes as long as all that follow."""
        if can_capture(self.workers.device) and self.training.capture:
            return COUNTED + EAGER
        return COUNTED if self.training.compile else 1

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
        drawn = self.sources.drawn(draws, numbers, self._layers(cycle.stage)) | {"labels": labels}
        inputs = {name: self._to_device(array) for name, array in drawn.items()}
        with self._autocast():
            return self._generate(self.state.generator, inputs, cycle.stage).to(self.dtype)

    @torch.no_grad()
    def examine(self, images: Tensor, labels: NDArray[np.int64], cycle: Cycle) -> tuple[Tensor, Tensor]:
        """The discriminator's features [n, f] and logits [n]; does not change the training."""
        discriminator = self.state.discriminator
        with self._autocast():
            features = discriminator.features(images, cycle.stage)
            return features, discriminator.judge(features, self._to_device(labels))

    def pixels(self, images: NDArray[np.uint8], cycle: Cycle) -> Tensor:
        """Real images uint8 [n, h, w, c] as the discriminator sees them: [n, c, h, w] in [-1, 1]."""
        return self._pixels(self._to_device(images), cycle.stage)

    def _enter(self, cycle: Cycle, frozen: Sequence[str]) -> None:
        """Freeze this and what the span does not use; set up gradients, Adam and places for inputs."""
        state, span, device = self.state, cycle.span, self.workers.device
        use_workers(state.generator, self.workers.sum)
        self._active_d = active(state.discriminator, "discriminator", cycle.stage, frozen)
        active_g = active(state.generator, "generator", cycle.stage, frozen)
        self._scaled_g = _scaled(state.generator, active_g)
        self._scaled_d = _scaled(state.discriminator, self._active_d)
        compression = self.training.gradient_compression
        self._gradients_g = Gradients(active_g, self.workers, compression)
        self._gradients_d = Gradients(self._active_d, self.workers, compression)
        self._places = Places(device)
        self._flops, self._taken = {}, Counter()
        if self.training.reset_adam and span.turns and cycle.start == span.start:
            state.optimizer_g.forget()
            state.optimizer_d.forget()
        self._span, self._frozen = span, frozen

    def _follow_schedules(self, cycle: Cycle) -> None:
        """Take over the values of now, and capture anew: graphs hold them."""
        values, device = self._values, self.workers.device
        self._replays = Replays(device) if can_capture(device) and self.training.capture else None
        for optimizer, rate in (
            (self.state.optimizer_g, values.lr_generator),
            (self.state.optimizer_d, values.lr_discriminator),
        ):
            optimizer.rate = rate * cycle.span.lr_scale
            optimizer.betas = self.training.adam_beta1, values.adam_beta2
        if values.augment_p is not None:
            self.state.augment_p.fill_(values.augment_p)

    def _count(self, due: Sequence[Due], work: Callable[[], Measures]) -> Measures:
        """Do the work, and count its operations; they are counted where nothing is compiled."""
        compiled = self._generator, self._discriminator
        self._generator, self._discriminator = self.state.generator, self.state.discriminator
        try:
            with Flops() as counted:
                measures = work()
        finally:
            self._generator, self._discriminator = compiled
        self._flops[due] = counted.total
        self.flops += counted.total * (COUNTED - 1)  # those before took as many
        return measures

    def _due(self, cycle: Cycle) -> Sequence[Due]:
        """What is due at each of the discriminator's steps, which are counted from the span's start."""
        training, values, steps = self.training, self._values, len(cycle.steps)
        first = (cycle.start - cycle.span.start) // cycle.span.cycle_images * steps
        return tuple(
            Due(
                bool(values.r1) and step % training.r1_every == 0,
                bool(values.r2) and step % training.r2_every == 0,
                bool(training.gradient_penalty) and step % training.gradient_penalty_every == 0,
            )
            for step in range(first, first + steps)
        )

    def _advance(
        self, stage: Stage, inputs: Sequence[Inputs], dealt: Portions, due: Sequence[Due]
    ) -> Measures:
        """The cycle on the device: a function of the state and of its inputs."""
        *steps, generator, numbers = inputs
        augmented = self.state.augment_p.to(self.dtype, copy=True)
        parts = [
            self._discriminator_step(stage, step, dealt, each)
            for step, each in zip(steps, due, strict=True)
        ]
        measures = _mean(parts) | self._generator_step(stage, generator, dealt)
        self._average(generator, numbers)
        measures["augment_p"] = augmented
        if self._drives_augmentation:
            self._drive_augmentation(measures["accuracy_real"], numbers["augment_move"])
        watched = torch.stack([measures[name] for name in FINITE])
        measures["margin"] = measures["logit_real"] - measures["logit_fake"]
        measures["nonfinite"] = 1 - watched.sum().isfinite().to(watched.dtype)
        return {name: measures[name] for name in MEASURES}

    def _discriminator_step(self, stage: Stage, inputs: Inputs, dealt: Portions, due: Due) -> Measures:
        state = self.state
        spectral_iterate(state.discriminator)
        self._gradients_d.clear()
        generator, discriminator = self._shared(dealt)
        with (
            holding(discriminator, trained=True, low=self._low),
            holding(generator, trained=False, low=self._low),
        ):
            parts = [
                self._discriminator_portion(stage, portion, 1 / dealt.count, due)
                for portion in _portions(inputs, dealt)
            ]
        self._gradients_d.exchange()
        norm = self._gradients_d.norm()
        state.optimizer_d.step()
        return _mean(parts) | {"grad_norm_d": norm}

    def _shared(self, dealt: Portions) -> tuple[Sequence[ScaledLayer], Sequence[ScaledLayer]]:
        """The layers of either network whose scaled weights all portions share; none for one portion."""
        return (self._scaled_g, self._scaled_d) if dealt.count > 1 else ((), ())

    def _discriminator_portion(self, stage: Stage, portion: Inputs, share: float, due: Due) -> Measures:
        """Add this share of a portion's gradients."""
        reals = self._pixels(portion["images"], stage)
        with torch.no_grad(), self._autocast():
            fakes = self._generate(self._generator, portion, stage)
        fakes = fakes.to(self.dtype)
        with full_precision():
            penalty = self._penalty(reals, fakes, portion, stage, due)
            if penalty.requires_grad:  # its activations are freed before the loss has its own
                (share * penalty).backward()
        seen_reals = self._augment(reals, portion, "real")
        seen_fakes = self._augment(fakes, portion, "fake")
        with self._autocast():
            real, fake = self._judge(seen_reals, seen_fakes, portion, stage)
        loss = self.loss.discriminator(real, fake)
        (share * (loss + self.training.drift * drift(real))).backward()
        return self._measure(loss.detach(), penalty.detach(), real.detach(), fake.detach())

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
        self, reals: Tensor, fakes: Tensor, inputs: Inputs, stage: Stage
    ) -> tuple[Tensor, Tensor]:
        """Logits of real and of fake images, in one forward unless the network mixes its batch."""
        labels = inputs["real_labels"], inputs["labels"]
        if self.state.discriminator.mixes_batch:
            real = self._discriminator(reals, labels[0], stage)
            fake = self._discriminator(fakes, labels[1], stage)
        else:
            logits = self._discriminator(torch.cat([reals, fakes]), torch.cat(labels), stage)
            real, fake = logits.split([len(reals), len(fakes)])
        return real.to(self.dtype), fake.to(self.dtype)

    def _penalty(self, reals: Tensor, fakes: Tensor, inputs: Inputs, stage: Stage, due: Due) -> Tensor:
        """The sum of the due penalties, in full precision, each times the steps until the next.

        Images between real and fake have the real image's label.
        """
        training, values, total = self.training, self._values, reals.new_zeros(())

        def discriminate(images: Tensor, side: str = "real") -> Tensor:
            labels = inputs["real_labels" if side == "real" else "labels"]
            return self.state.discriminator(self._augment(images, inputs, side), labels, stage)

        if due.r1:
            penalty = self._slope(discriminate, reals, inputs.get("real_nudges"))
            total = total + values.r1 * training.r1_every * penalty
        if due.r2:
            judge_fakes = partial(discriminate, side="fake")
            penalty = self._slope(judge_fakes, fakes, inputs.get("fake_nudges"))
            total = total + values.r2 * training.r2_every * penalty
        if due.between:
            weight = training.gradient_penalty * training.gradient_penalty_every
            target = training.gradient_penalty_target
            penalty = gradient_penalty(discriminate, reals, fakes, inputs["between"], target)
            total = total + weight * penalty
        return total

    def _slope(self, discriminate: Call, images: Tensor, nudges: Tensor | None) -> Tensor:
        """Half the squared slope at these images, exactly or from differences over seeded noise."""
        if nudges is None:
            return slope_penalty(discriminate, images)
        noise = normals(nudges, images[0].numel()).to(images.dtype).view_as(images)
        return rough_slope_penalty(discriminate, images, noise, self.training.slope_sigma)

    def _generator_step(self, stage: Stage, inputs: Inputs, dealt: Portions) -> Measures:
        state = self.state
        spectral_iterate(state.generator)
        self._gradients_g.clear()
        losses = []
        generator, discriminator = self._shared(dealt)
        with (
            _frozen(self._active_d),
            holding(generator, trained=True, low=self._low),
            holding(discriminator, trained=False, low=self._low),
        ):
            for portion in _portions(inputs, dealt):
                with self._autocast():
                    fakes = self._generate(self._generator, portion, stage)
                fakes = self._augment(fakes.to(self.dtype), portion, "fake")
                with self._autocast():
                    logits = self._discriminator(fakes, portion["labels"], stage)
                fake = logits.to(self.dtype)
                real = self._compared(portion, stage) if self.loss.paired else fake
                loss = self.loss.generator(fake, real)
                (loss / dealt.count).backward()
                losses.append(loss.detach())
        self._gradients_g.exchange()
        if self.training.orthogonal:
            add_orthogonal_gradient(state.generator, self.training.orthogonal)
        norm = self._gradients_g.norm()
        state.optimizer_g.step()
        return {"loss_g": torch.stack(losses).mean(), "grad_norm_g": norm}

    @torch.no_grad()
    def _compared(self, inputs: Inputs, stage: Stage) -> Tensor:
        """Logits of the real images that the generator's are compared with."""
        reals = self._augment(self._pixels(inputs["images"], stage), inputs, "real")
        with self._autocast():
            logits = self._discriminator(reals, inputs["real_labels"], stage)
        return logits.to(self.dtype)

    def _augment(self, images: Tensor, inputs: Inputs, side: str) -> Tensor:
        """The images as the discriminator sees them; `side` says whether they are real or fake."""
        if self.training.augment == "none":
            return images
        chance = self.state.augment_p
        return augment(self.training.augment, images, inputs[f"{side}_changes"], chance)

    @torch.no_grad()
    def _drive_augmentation(self, accuracy: Tensor, move: Tensor) -> None:
        """Augment more if the mean sign of real images' logits is above the target, and less below it.

        (Karras et al. 2020, §3.1.) The mean sign is twice the accuracy on real images, minus 1.
        """
        mean_sign = 2 * self.workers.mean(accuracy.double()) - 1
        direction = torch.sign((mean_sign - self.training.augment_target).round(decimals=6))
        self.state.augment_p.add_(direction * move).clamp_(0, 1)

    @torch.no_grad()
    def _average(self, inputs: Inputs, numbers: Inputs) -> None:
        """Move the running averages of weights and of w by their shares; copy the buffers."""
        generator = self.state.generator
        # Once a cycle. StyleGAN's authors also move it in D's step, where latents have the same
        # distribution: the half-life in images takes that into account, at half the work.
        if self.has_styles:
            generator.average_styles(inputs["latents"], inputs["labels"], numbers["styles_share"])
        moves = torch._foreach_sub(self._weights, self._ema)
        torch._foreach_mul_(moves, numbers["weights_share"])
        torch._foreach_add_(self._ema, moves)
        if self._buffers:
            torch._foreach_copy_(self._ema_buffers, self._buffers)

    def _generate(self, call: Call, inputs: Inputs, stage: Stage) -> Tensor:
        """The images of what was drawn; `call` is the generator, or stands for it."""
        latents, labels = inputs["latents"], inputs["labels"]
        if not self.has_styles:
            return call(latents, labels, stage)
        mixing = None
        if "mixed_from" in inputs:
            mixing = Mixing(inputs["mixed_latents"], inputs["mixed_from"])
        noise = self.state.generator.draw_noise(inputs["noise"], stage)
        return call(latents, labels, stage, mixing, noise)

    def _layers(self, stage: Stage) -> int:
        return self.state.generator.layer_count(stage) if self.has_styles else 0

    def _pixels(self, images: Tensor, stage: Stage) -> Tensor:
        """uint8 [n, h, w, c] on the device as floats [n, c, h, w] in [-1, 1], faded as the stage is."""
        pixels = images.permute(0, 3, 1, 2).to(self.dtype) / 127.5 - 1
        if not self.training.channels_last:
            pixels = pixels.contiguous()
        return growth.fade_images(pixels, stage)

    def _to_device(self, array: NDArray) -> Tensor:
        return torch.from_numpy(array).to(self.workers.device)

    def _autocast(self) -> torch.autocast:
        enabled = self.training.precision == "bf16"
        return torch.autocast(self.workers.device.type, torch.bfloat16, enabled=enabled)


def active(network: Growing, part: str, stage: Stage, frozen: Sequence[str]) -> list[nn.Parameter]:
    """What is trained of a network at a stage; `frozen` are names like `discriminator.first.2`.

    ValueError if the network has no such part, or if nothing of it is left.
    """
    names = [name.removeprefix(f"{part}.") for name in frozen if name.startswith(f"{part}.")]
    parameters = network.activate(stage, names)
    if not parameters:
        raise ValueError(f"nothing of the {part} is left to train at {stage.resolution} px")
    return parameters


def _portions(inputs: Inputs, dealt: Portions) -> Iterator[Inputs]:
    """The inputs of each portion of a share."""
    for i in range(dealt.count):
        yield {name: dealt.part(tensor, i) for name, tensor in inputs.items()}


def _mean(parts: Sequence[Measures]) -> Measures:
    """The means of measures that have the same names."""
    table = torch.stack([torch.stack([*part.values()]) for part in parts])
    return dict(zip(parts[0], table.mean(0).unbind(), strict=True))


def _scaled(network: nn.Module, parameters: Sequence[nn.Parameter]) -> list[ScaledLayer]:
    """The layers that scale one of these parameters."""
    mine = {id(parameter) for parameter in parameters}
    layers = (layer for layer in network.modules() if isinstance(layer, ScaledLayer))
    return [layer for layer in layers if id(layer.weight) in mine]


@contextmanager
def _frozen(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Inside, these get no gradients; they do again afterwards, even if the memory runs out."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
