"""All that resumes: networks, EMA, optimizers, clock, attempt. What is not here is derived."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Adam

import models
from models import Growing, GrowingDiscriminator
from models.layers import use_fused
from service.collapse.signals import Spectra
from service.config import Config, Training


@dataclass
class TrainState:
    """What a checkpoint holds. `images` is the clock; `monitor` and `tracking` hold plain values."""

    PARTS = ("generator", "discriminator", "ema", "optimizer_g", "optimizer_d", "spectra")
    PLAIN = ("seed", "images", "attempt", "amendments", "monitor", "tracking")

    generator: Growing
    discriminator: GrowingDiscriminator
    ema: Growing
    optimizer_g: Adam
    optimizer_d: Adam
    spectra: Spectra
    seed: int
    images: int = 0
    attempt: int = 0
    amendments: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    monitor: dict[str, Any] = field(default_factory=dict)
    tracking: dict[str, str] = field(default_factory=dict)

    def tensors(self) -> dict[str, dict[str, Any]]:
        """The state dictionaries by name: those of networks, optimizers and the spectra's vectors."""
        return {name: getattr(self, name).state_dict() for name in self.PARTS}

    def plain(self) -> dict[str, Any]:
        """The rest, fit for JSON."""
        return {name: getattr(self, name) for name in self.PLAIN}

    def load(self, tensors: dict[str, dict[str, Any]], plain: dict[str, Any]) -> None:
        """Become the state that `tensors` and `plain` gave; RuntimeError where shapes differ."""
        for name, content in tensors.items():
            getattr(self, name).load_state_dict(content)
        for name in self.PLAIN:
            setattr(self, name, plain[name])
        self.amendments = [(images, change) for images, change in plain["amendments"]]


def new_state(config: Config, device: torch.device) -> TrainState:
    """The state at image 0: weights drawn from the seed, on `device`, in the configured layout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        generator, discriminator = models.build(config.model.family, **config.model_settings)
    training = config.training
    for network in (generator, discriminator):
        _prepare(network, training, device)
    return TrainState(
        generator,
        discriminator,
        copy.deepcopy(generator).requires_grad_(False),
        _adam(generator.parameters(), training.lr_generator, training),
        _adam(discriminator.parameters(), training.lr_discriminator, training),
        Spectra({"generator": generator, "discriminator": discriminator}),
        seed=config.run.seed,
    )


def _prepare(network: nn.Module, training: Training, device: torch.device) -> None:
    use_fused(network, training.fused_resampling)
    network.to(device, torch.float64 if training.precision == "fp64" else torch.float32)
    if training.channels_last:
        # after initialisation, which refuses such weights
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _adam(parameters: Iterable[nn.Parameter], rate: float, training: Training) -> Adam:
    # torch refuses a first beta of integer 0
    betas = (float(training.adam_beta1), training.adam_beta2)
    return Adam(parameters, lr=rate, betas=betas, eps=training.adam_eps, fused=True)
