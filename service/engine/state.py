"""Everything that resumes: networks, EMA, optimizers, clock, attempt. All else is derived."""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import models
from models.growth import GrowingDiscriminator, GrowingGenerator
from models.layers import use_fused
from service.collapse.signals import Spectra
from service.collapse.state import CollapseState
from service.config import Config, TrainingSettings
from service.engine.adam import Adam
from service.engine.plain import PARTS, Amended, PlainState


@dataclass
class TrainState:
    """What a checkpoint holds. `attempt` counts rewinds; `amendments` are their changes.

    `augment_p`, the chance of an augmentation, is a scalar on the device, which moves it.
    """

    generator: GrowingGenerator
    discriminator: GrowingDiscriminator
    ema: GrowingGenerator
    optimizer_g: Adam
    optimizer_d: Adam
    spectra: Spectra
    augment_p: Tensor
    seed: int
    clock: int = 0
    attempt: int = 0
    amendments: tuple[Amended, ...] = ()
    collapse: CollapseState = field(default_factory=CollapseState)

    def tensors(self) -> dict[str, dict[str, Any]]:
        """State dictionaries by name: of the networks, the optimizers and the spectra."""
        return {name: getattr(self, name).state_dict() for name in PARTS}

    def weights(self) -> Iterator[Iterable[Tensor]]:
        """The tensors of each network, and of the spectra."""
        for part in (self.generator, self.discriminator, self.ema, self.spectra):
            yield part.state_dict().values()

    def plain(self) -> PlainState:
        """The plain values of the state."""
        return PlainState(
            self.seed,
            self.clock,
            self.attempt,
            self.amendments,
            self.collapse,
            self.augment_p.item(),
        )

    def load(self, tensors: dict[str, dict[str, Any]], plain: PlainState) -> None:
        """Take over the state of `tensors` and `plain`; RuntimeError if parts or shapes differ."""
        if set(tensors) != set(PARTS):
            raise RuntimeError(f"parts {sorted(tensors)}, expected {sorted(PARTS)}")
        for name, content in tensors.items():
            getattr(self, name).load_state_dict(content)
        self.seed, self.clock, self.attempt = plain.seed, plain.clock, plain.attempt
        self.amendments, self.collapse = plain.amendments, plain.collapse
        self.augment_p.fill_(plain.augment_p)


def new_state(config: Config, device: torch.device) -> TrainState:
    """The state at image 0: weights drawn from the seed, on `device`, in the configured layout."""
    generator, discriminator = networks(config, device)
    spectra = spectra_of(generator, discriminator)
    ema = copy.deepcopy(generator).requires_grad_(False)
    return state_of(config, generator, discriminator, ema, spectra)


def networks(config: Config, device: torch.device) -> tuple[GrowingGenerator, GrowingDiscriminator]:
    """Generator and discriminator as they begin."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        generator, discriminator = models.build(config.model.family, **config.model_settings)
    for network in (generator, discriminator):
        _prepare(network, config.training, device)
    return generator, discriminator


def spectra_of(generator: GrowingGenerator, discriminator: GrowingDiscriminator) -> Spectra:
    """What watches the weights of both networks, aligned with them as they are now."""
    return Spectra({"generator": generator, "discriminator": discriminator})


def state_of(
    config: Config,
    generator: GrowingGenerator,
    discriminator: GrowingDiscriminator,
    ema: GrowingGenerator,
    spectra: Spectra,
) -> TrainState:
    """The state at image 0 of these networks; `spectra` watches their weights."""
    training, begun = config.training, config.training.at(0)
    return TrainState(
        generator,
        discriminator,
        ema,
        _adam(generator.parameters(), begun.lr_generator, training),
        _adam(discriminator.parameters(), begun.lr_discriminator, training),
        spectra,
        _first_chance(training, next(generator.parameters()).device),
        seed=config.run.seed,
    )


def _first_chance(training: TrainingSettings, device: torch.device) -> Tensor:
    """The chance of an augmentation at image 0: 0 where it is driven."""
    given = training.at(0).augment_p
    always = 1.0 if training.augment == "diffaugment" else 0.0
    return torch.tensor(always if given is None else given, dtype=torch.float64, device=device)


def _prepare(network: nn.Module, training: TrainingSettings, device: torch.device) -> None:
    use_fused(network, training.fused_resampling)
    network.to(device, torch.float64 if training.precision == "fp64" else torch.float32)
    if training.channels_last:
        # after initialisation, which rejects such weights
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _adam(parameters: Iterable[nn.Parameter], rate: float, training: TrainingSettings) -> Adam:
    betas = training.adam_beta1, training.at(0).adam_beta2
    return Adam(parameters, rate, betas, training.adam_eps)
