"""Adversarial losses by name: each a pair of functions of logits [n], averaged over the batch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """`discriminator(real, fake)` and `generator(fake)`, each from logits [n] to a scalar."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """max(0, 1 − real) + max(0, 1 + fake) (Lim & Ye 2017; Miyato et al. 2018, eq. 16)."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_generator(fake: Tensor) -> Tensor:
    """−fake (Miyato et al. 2018, eq. 17)."""
    return -fake.mean()


LOSSES: dict[str, Loss] = {"hinge": Loss(hinge_discriminator, hinge_generator)}
