"""Losses against hand-computed values; penalties against finite differences in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import models
from models import Stage
from models.layers import Grouping
from models.losses import (
    LOSSES,
    add_orthogonal_gradient,
    drift,
    gradient_penalty,
    rough_slope_penalty,
    slope_penalty,
)

REAL, FAKE = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 1.0])


def log_sigmoid(x: float) -> float:
    return -math.log(1 + math.exp(-x))


def mean(values) -> float:
    return sum(values) / 3


EXPECTED = {
    "hinge": ((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3, (2 - 0 - 1) / 3),
    "wgan": ((-2 + 0 + 1) / 3 - (2 + 0.5 - 1) / 3, (2 - 0 - 1) / 3),
    "lsgan": (0.5 * ((1 + 0.25 + 4) / 3 + (4 + 0 + 1) / 3), 0.5 * (9 + 1 + 0) / 3),
    "non-saturating": (
        -mean(map(log_sigmoid, [2.0, 0.5, -1.0])) - mean(map(log_sigmoid, [2.0, 0.0, -1.0])),
        -mean(map(log_sigmoid, [-2.0, 0.0, 1.0])),
    ),
    "relativistic": (
        -mean(map(log_sigmoid, [4.0, 0.5, -2.0])),
        -mean(map(log_sigmoid, [-4.0, -0.5, 2.0])),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_the_papers(name):
    discriminator, generator = EXPECTED[name]
    assert LOSSES[name].discriminator(REAL, FAKE).item() == pytest.approx(discriminator, rel=1e-6)
    assert LOSSES[name].generator(FAKE, REAL).item() == pytest.approx(generator, rel=1e-6)


def test_drift_is_the_mean_square():
    assert drift(REAL).item() == pytest.approx((4 + 0.25 + 1) / 3)


@given(st.sampled_from([*LOSSES]), st.lists(st.floats(-5, 5), min_size=2, max_size=6))
def test_loss_gradients_agree_with_finite_differences(name, logits):
    real = torch.tensor(logits, dtype=torch.float64)
    fake = -0.7 * real.flip(0) + 0.123
    near_kink = min((x.abs() - 1).abs().min().item() for x in (real, fake))
    if name != "hinge" or near_kink > 1e-3:
        real.requires_grad_()
        fake = fake.detach().requires_grad_()
        assert torch.autograd.gradcheck(LOSSES[name].discriminator, (real, fake))
        assert torch.autograd.gradcheck(LOSSES[name].generator, (fake, real.detach()))


# Penalties on tiny networks of all kinds: batch norm, minibatch stddev, spectral norm and attention.
TINY = {
    "dcgan": {"width": 2, "latents": 4},
    "progan": {"width": 4, "latents": 4},
    "stylegan": {"width": 4, "latents": 4, "mapping_layers": 1},
    "sagan": {"width": 2, "latents": 4, "attention": 8},
    "biggan": {"width": 2, "latents": 12, "embedding": 3, "attention": 8},
    "biggan-deep": {"width": 4, "latents": 4, "embedding": 3, "attention": 8},
}


@pytest.fixture(params=TINY, scope="module")
def judge(request):
    """A discriminator of 16 px as a function of images alone, and its parameters."""
    torch.manual_seed(0)
    _, network = models.build(request.param, resolution=16, channels=1, classes=3, **TINY[request.param])
    network.double()
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    labels = torch.tensor([0, 1, 2, 1])

    def discriminate(images: torch.Tensor) -> torch.Tensor:
        """Logits of the four images, or of copies of them that lie side by side."""
        return network(images, labels.repeat_interleave(len(images) // len(labels)), Stage(16))

    return discriminate, network


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 4, 1, 16, 16, generator=generator, dtype=torch.float64) * 2 - 1


def slopes(discriminate, network, images: torch.Tensor, step: float = 1e-5) -> torch.Tensor:
    """|∇|² of each image, from central differences along every pixel."""
    sees_batch = any(isinstance(layer, Grouping) for layer in network.modules())
    total = torch.zeros(len(images), dtype=torch.float64)
    with torch.no_grad():
        for image in range(len(images)):
            for places in torch.arange(images[0].numel()).split(1 if sees_batch else 32):
                slope = _differences(discriminate, images, image, places, step) / (2 * step)
                total[image] += slope.square().sum()
    return total


def _differences(discriminate, images, image: int, places: torch.Tensor, step: float) -> torch.Tensor:
    """By how much the sum of all logits differs when one pixel of one image is moved up, and down."""
    sums = []
    for sign in (1, -1):
        copies = images[:, None].repeat(1, len(places), 1, 1, 1)
        copies[image].view(len(places), -1)[range(len(places)), places] += sign * step
        sums.append(discriminate(copies.flatten(0, 1)).view(len(images), -1).sum(0))
    return sums[0] - sums[1]


def penalties(discriminate, images):
    reals, fakes = images
    shares = torch.tensor([[0.1], [0.9], [0.5], [0.3]], dtype=torch.float64)
    yield lambda: slope_penalty(discriminate, reals)
    yield lambda: gradient_penalty(discriminate, reals, fakes, shares, 1.5)


@pytest.mark.slow
def test_penalties_are_their_formulas_with_differences_for_gradients(judge, images):
    discriminate, network = judge
    reals, fakes = images
    shares = torch.tensor([0.1, 0.9, 0.5, 0.3], dtype=torch.float64)
    between = fakes + shares[:, None, None, None] * (reals - fakes)
    r1, gp = (penalty() for penalty in penalties(discriminate, images))
    torch.testing.assert_close(r1, slopes(discriminate, network, reals).mean() / 2, rtol=1e-3, atol=1e-9)
    expected = ((slopes(discriminate, network, between).sqrt() - 1.5) / 1.5).square().mean()
    torch.testing.assert_close(gp, expected, rtol=1e-3, atol=1e-9)


@pytest.mark.slow
def test_differences_over_small_noise_are_the_slope_in_the_mean(judge, images):
    """For a linear function exactly, whatever the step; for a network with enough draws, in float64."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(256, generator=draw, dtype=torch.float64)
    flat = torch.randn(20_000, 256, generator=draw, dtype=torch.float64)

    def linear(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ weight

    for sigma in (1e-3, 1.0):
        rough = rough_slope_penalty(linear, torch.zeros_like(flat), flat, sigma)
        assert rough.item() == pytest.approx(slope_penalty(linear, flat).item(), rel=0.03)

    discriminate, _ = judge
    reals, _ = images
    exact = slope_penalty(discriminate, reals)
    along, step = torch.randn(4, 1, 16, 16, generator=draw, dtype=torch.float64), 1e-6
    with torch.no_grad():  # the derivative along one direction, by central differences
        moved = discriminate(reals + step * along) - discriminate(reals - step * along)
    expected = 0.5 * (moved / (2 * step)).square().mean()
    torch.testing.assert_close(
        rough_slope_penalty(discriminate, reals, along, step), expected, rtol=1e-2, atol=1e-9
    )
    draws = [torch.randn(4, 1, 16, 16, generator=draw, dtype=torch.float64) for _ in range(400)]
    mean_of_all = torch.stack([rough_slope_penalty(discriminate, reals, e, step) for e in draws]).mean()
    assert mean_of_all.item() == pytest.approx(exact.item(), rel=0.35)


def test_gradients_of_penalties_agree_with_finite_differences(judge, images):
    """In a few random directions through all parameters at once; steps are short because ReLUs jump."""
    discriminate, network = judge
    parameters = list(network.parameters())
    for penalty in penalties(discriminate, images):
        network.zero_grad()
        penalty().backward()
        for seed in range(3):
            torch.manual_seed(seed)
            directions = [torch.randn_like(parameter) for parameter in parameters]
            exact = sum(
                (p.grad * d).sum()
                for p, d in zip(parameters, directions, strict=True)
                if p.grad is not None
            )
            values = []
            step = 1e-8
            for sign in (1, -1):
                for p, d in zip(parameters, directions, strict=True):
                    p.data += sign * step * d
                values.append(penalty().item())
                for p, d in zip(parameters, directions, strict=True):
                    p.data -= sign * step * d
            difference = (values[0] - values[1]) / (2 * step)
            assert float(exact) == pytest.approx(difference, rel=1e-3, abs=1e-6)


def test_the_penalty_of_a_flat_discriminator_has_finite_gradients():
    weight = torch.zeros(1, requires_grad=True)
    images = torch.rand(2, 4, 1, 2, 2)
    penalty = gradient_penalty(
        lambda x: (weight * x).sum((1, 2, 3)), *images, torch.full((4,), 0.5), 1.0
    )
    penalty.backward()
    assert penalty.item() == pytest.approx(1.0)
    assert torch.isfinite(weight.grad)


def test_orthogonal_regularisation_adds_the_gradient_of_its_norm_and_spares_embeddings():
    layers = (nn.Embedding(3, 4), nn.Linear(4, 5), nn.Conv2d(2, 3, 3), nn.ConvTranspose2d(2, 3, 2))
    network = nn.Sequential(*layers).double()
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    add_orthogonal_gradient(network, 0.1)
    assert torch.equal(network[0].weight.grad, torch.ones_like(network[0].weight))
    assert torch.equal(network[1].bias.grad, torch.ones_like(network[1].bias))
    for layer in network[1:]:
        transposed = isinstance(layer, nn.ConvTranspose2d)
        weight = layer.weight.transpose(0, 1) if transposed else layer.weight
        added = layer.weight.grad.transpose(0, 1) if transposed else layer.weight.grad
        matrix = weight.detach().flatten(1).requires_grad_()
        outside = (matrix @ matrix.T) * (1 - torch.eye(len(matrix), dtype=torch.float64))
        # half of the gradient of |W Wᵀ ⊙ (1 − I)|²: the published code's scale
        (gradient,) = torch.autograd.grad(0.5 * outside.square().sum(), matrix)
        torch.testing.assert_close(added, 1 + 0.1 * gradient.view_as(weight))


def test_orthogonal_regularisation_spares_biases_whatever_their_shape():
    generator, _ = models.build("stylegan", resolution=8, first_resolution=8, width=4, latents=4)
    for parameter in generator.parameters():
        parameter.data.normal_()
        parameter.grad = torch.zeros_like(parameter)
    add_orthogonal_gradient(generator, 1.0)
    moved = {name for name, p in generator.named_parameters() if p.grad.abs().sum() > 0}
    assert moved
    assert all(name.endswith("weight") for name in moved)
