"""Adversarial losses by name, and regularisers: penalties on gradients, logits and weights.

A loss is a pair of functions of logits [n]. Every regulariser goes with every loss.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Loss:
    """`discriminator(real, fake)` and `generator(fake, real)`; each maps logits [n] to their mean loss.

    A loss that is `paired` compares each fake image with a real one of its label, in both steps; others
    do not look at the real logits in the generator's. Logits above `boundary` mean "real". Those of wgan
    and of paired losses have no natural zero: only their differences count.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor, Tensor], Tensor]
    boundary: float = 0.0
    paired: bool = False


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """max(0, 1 − real) + max(0, 1 + fake) (Lim & Ye 2017; Miyato et al. 2018, eq. 16)."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def wasserstein_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """fake − real (Arjovsky et al. 2017, eq. 2)."""
    return fake.mean() - real.mean()


def minus_fake(fake: Tensor, real: Tensor) -> Tensor:
    """−fake: the generator's side of hinge and Wasserstein (Miyato et al. 2018, eq. 17)."""
    return -fake.mean()


def least_squares_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """½ (real − 1)² + ½ fake² (Mao et al. 2017, eq. 9)."""
    return 0.5 * ((real - 1).square().mean() + fake.square().mean())


def least_squares_generator(fake: Tensor, real: Tensor) -> Tensor:
    """½ (fake − 1)² (Mao et al. 2017, eq. 9)."""
    return 0.5 * (fake - 1).square().mean()


def logistic_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """−log σ(real) − log(1 − σ(fake)) (Goodfellow et al. 2014, eq. 1)."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def non_saturating_generator(fake: Tensor, real: Tensor) -> Tensor:
    """−log σ(fake) (Goodfellow et al. 2014, §3)."""
    return F.softplus(-fake).mean()


def relativistic_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """−log σ(real − fake) of each pair (Jolicoeur-Martineau 2019, §4; Huang et al. 2024, eq. 2)."""
    return F.softplus(fake - real).mean()


def relativistic_generator(fake: Tensor, real: Tensor) -> Tensor:
    """−log σ(fake − real) of each pair: the mirror of the discriminator's."""
    return F.softplus(real - fake).mean()


LOSSES: dict[str, Loss] = {
    "hinge": Loss(hinge_discriminator, minus_fake),
    "wgan": Loss(wasserstein_discriminator, minus_fake),
    "lsgan": Loss(least_squares_discriminator, least_squares_generator, boundary=0.5),
    "non-saturating": Loss(logistic_discriminator, non_saturating_generator),
    "relativistic": Loss(relativistic_discriminator, relativistic_generator, paired=True),
}


# Regularisers -------------------------------------------------------------------------------------

Discriminate = Callable[[Tensor], Tensor]


def drift(real: Tensor) -> Tensor:
    """real²: keeps the logits near 0 where the loss does not (Karras et al. 2018, §A.1)."""
    return real.square().mean()


def slope_penalty(discriminate: Discriminate, images: Tensor) -> Tensor:
    """½ |∇ D(x)|², the mean over images [n, …].

    γ times this is R1 at real images and R2 at fake ones (Mescheder et al. 2018, eq. 9 and 10).
    """
    return 0.5 * _squared_gradients(discriminate, images).mean()


def rough_slope_penalty(
    discriminate: Discriminate, images: Tensor, noise: Tensor, sigma: float
) -> Tensor:
    """½ ((D(x) − D(x + σ ε)) / σ)²: in the mean over normal ε, `slope_penalty` for a small σ.

    It needs no gradient of a gradient (Lin et al. 2025, "Diffusion Adversarial Post-Training").
    """
    images = images.detach()
    moved = discriminate(images + sigma * noise)
    return 0.5 * ((discriminate(images) - moved) / sigma).square().mean()


def gradient_penalty(
    discriminate: Discriminate, reals: Tensor, fakes: Tensor, shares: Tensor, target: float
) -> Tensor:
    """The mean of ((|∇ D(x)| − target) / target)² at x = fake + share · (real − fake).

    `shares` [n] are uniform in [0, 1) (Gulrajani et al. 2017, §4; the target from Karras et al. 2018,
    §A.1).
    """
    shares = shares.to(reals.dtype).view(-1, *[1] * (reals.ndim - 1))
    squared = _squared_gradients(discriminate, torch.lerp(fakes, reals, shares))
    # a root's slope at 0 is infinite, and stddev or ReLU may give an image a gradient of 0
    norms = torch.sqrt(squared + torch.finfo(squared.dtype).tiny)
    return ((norms - target) / target).square().mean()


def _squared_gradients(discriminate: Discriminate, images: Tensor) -> Tensor:
    """|∇ D|² of each image [n], differentiable again."""
    images = images.detach().requires_grad_()
    logits = discriminate(images)
    (gradients,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradients.flatten(1).square().sum(1)


@torch.no_grad()
def add_orthogonal_gradient(network: nn.Module, strength: float) -> None:
    """Add `strength` times the gradient of orthogonal regularisation (Brock et al. 2019, eq. 3).

    It is 2 · ((W Wᵀ) ⊙ (1 − I)) W, the gradient of ½ |(W Wᵀ) ⊙ (1 − I)|². W is each dense or
    convolution weight that has a gradient, as a matrix [out, in · kh · kw]. Embeddings are left out.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Embedding):
            continue
        for weight in layer.parameters(recurse=False):
            if weight.grad is None or weight.ndim not in (2, 4):
                continue
            transposed = isinstance(layer, nn.ConvTranspose2d)  # its weights are [in, out, kh, kw]
            rows = weight.transpose(0, 1) if transposed else weight
            grad = weight.grad.transpose(0, 1) if transposed else weight.grad
            matrix = rows.flatten(1)
            overlaps = (matrix @ matrix.T).fill_diagonal_(0)
            grad.add_((overlaps @ matrix).view_as(rows), alpha=2 * strength)
