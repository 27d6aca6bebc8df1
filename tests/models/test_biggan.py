"""BigGAN: the published numbers of parameters, its shapes, and how it grows."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import models
from models import Stage, growth
from models.layers import parameter_count, use_fused

RUNGS = (8, 16, 32)
STAGES = [Stage(8), Stage(16, 0.0), Stage(16, 0.4), Stage(16), Stage(32, 0.7), Stage(32)]


def published(resolution: int, width: int, latents: int, attention: int, classes: int = 1000) -> dict:
    return {
        "resolution": resolution,
        "first_resolution": resolution,
        "channels": 3,
        "classes": classes,
        "width": width,
        "latents": latents,
        "embedding": 128,
        "attention": attention,
    }


@pytest.mark.parametrize(
    ("settings", "generator", "discriminator"),
    [
        (published(128, 96, 120, 64), 70_433_988, 87_982_370),
        (published(128, 64, 120, 64), 31_978_628, 39_448_258),
        (published(256, 96, 140, 128), 82_097_604, 99_191_330),
        (published(256, 96, 140, 64), 82_235_844, 99_225_890),
        (published(32, 32, 80, 16, classes=10), 1_230_852, 1_075_586),
    ],
)
def test_parameter_counts_are_the_published_ones(settings, generator, discriminator):
    with torch.device("meta"):
        networks = models.build("biggan", **settings)
    assert parameter_count(networks) == [generator, discriminator]


def test_parts_of_the_128_px_generator_count_as_published():
    with torch.device("meta"):
        generator, _ = models.build("biggan", **published(128, 96, 120, 64))
    blocks = parameter_count(generator.blocks.values())
    assert blocks == [45_740_544, 17_789_184, 4_618_368, 1_240_128, 352_800]
    assert parameter_count([generator.attention["64"], generator.dense]) == [46_081, 516_096]
    assert parameter_count([generator.heads["128"]]) == [2_787]


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    settings = published(32, 4, 16, 16, classes=5) | {"first_resolution": 8, "channels": 1}
    networks = models.build("biggan", **settings)
    for network in networks:
        network.double()
        for parameter in network.parameters():  # no gain at zero, or attention would be hidden
            parameter.data += 0.05 * torch.randn_like(parameter)
    return networks


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(6, 16, generator=generator, dtype=torch.float64)
    return latents, torch.arange(6) % 5


@pytest.mark.parametrize("stage", STAGES)
def test_gradients_reach_every_active_parameter_and_no_inactive_one(networks, inputs, stage):
    generator, discriminator = networks
    active = [network.activate(stage) for network in networks]
    images = generator(*inputs, stage)
    assert images.shape == (6, 1, stage.resolution, stage.resolution)
    discriminator(images, inputs[1], stage).sum().backward()
    for network, used in zip(networks, active, strict=True):
        assert all(parameter.grad is not None for parameter in used)
        if stage.alpha > 0:
            assert all(parameter.grad.abs().sum() > 0 for parameter in used)
        idle = {id(p) for p in network.parameters()} - {id(p) for p in used}
        assert all(p.grad is None for p in network.parameters() if id(p) in idle)
        network.zero_grad()


@pytest.mark.parametrize("rung", [16, 32])
def test_at_alpha_0_the_generator_draws_the_enlarged_rung_below(networks, inputs, rung):
    with torch.no_grad():
        faded = networks[0](*inputs, Stage(rung, 0.0))
        below = networks[0](*inputs, Stage(rung // 2))
    assert torch.equal(faded, growth.upsample(below))


@pytest.mark.parametrize("rung", [16, 32])
def test_at_alpha_0_the_discriminator_sees_the_rung_below(networks, inputs, rung):
    images = torch.rand(6, 1, rung, rung, dtype=torch.float64)
    with torch.no_grad():
        faded = networks[1](images, inputs[1], Stage(rung, 0.0))
        below = networks[1](growth.downsample(images), inputs[1], Stage(rung // 2))
    torch.testing.assert_close(faded, below, rtol=0, atol=0)


@pytest.mark.parametrize("rung", [16, 32])
def test_the_fade_is_linear_between_the_two_rungs(networks, inputs, rung):
    with torch.no_grad():
        start, middle = (networks[0](*inputs, Stage(rung, alpha)) for alpha in (0.0, 0.25))
        end = networks[0](*inputs, Stage(rung))
    torch.testing.assert_close(middle, 0.75 * start + 0.25 * end)


@pytest.mark.parametrize("stage", STAGES)
def test_fused_resampling_is_the_same_function(networks, inputs, stage):
    results = []
    for fused in (True, False):
        for network in networks:
            use_fused(network, fused)
        with torch.no_grad():
            images = networks[0](*inputs, stage)
            results.append((images, networks[1](images, inputs[1], stage)))
    use_fused(networks[0], True)
    use_fused(networks[1], True)
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"attention": 5}, "attention 5"),
        ({"latents": 81}, "multiple of 4"),
        ({"resolution": 48}, "resolution 48"),
        ({"first_resolution": 12}, "no ladder"),
        ({"first_resolution": 4}, "first resolution 4"),
        ({"classes": 0}, "classes"),
    ],
)
def test_settings_that_make_no_network_say_so(change, word):
    with pytest.raises(ValueError, match=word):
        models.build("biggan", **(published(32, 4, 16, 16) | change))


def test_a_stage_off_the_ladder_is_refused(networks, inputs):
    with pytest.raises(ValueError, match="no rung of 64"):
        networks[0](*inputs, Stage(64))
    with pytest.raises(ValueError, match="none below"):
        networks[0](*inputs, Stage(8, 0.5))


@given(st.sampled_from([4, 7, 8]), st.integers(0, 8))
def test_a_ladder_doubles_from_first_to_last(first, steps):
    rungs = growth.ladder(first, first * 2**steps)
    assert rungs[0] == first
    assert all(high == 2 * low for low, high in itertools.pairwise(rungs))
