"""Every family on its ladder: what a stage uses, and how one rung fades into the next."""

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

import models
from models import Stage, growth, shape
from models.layers import use_fused


@dataclass(frozen=True)
class Case:
    """A tiny network pair of a family, on a ladder of two or three rungs."""

    family: str
    settings: dict[str, Any]

    def __str__(self) -> str:
        classes = "labels" if self.settings.get("classes") else "no labels"
        return f"{self.family} {self.settings['resolution']} px, {classes}"


TINY: dict[str, dict[str, Any]] = {
    "dcgan": {"width": 4, "latents": 8},
    "sagan": {"width": 4, "latents": 8, "attention": 16},
    "biggan": {"width": 4, "latents": 16, "embedding": 6, "attention": 16},
    "biggan-deep": {"width": 4, "latents": 8, "embedding": 6, "attention": 16},
    "progan": {"width": 8, "latents": 8},
    "stylegan": {"width": 8, "latents": 8, "mapping_layers": 2},
    "mnist-pggan": {"width": 8, "latents": 8},
}


def cases() -> list[Case]:
    """Base 4 in RGB with labels, and base 7 in gray without; the MNIST GAN only has base 7."""
    result = []
    for family, settings in TINY.items():
        coloured = {"resolution": 32, "first_resolution": 8, "channels": 3, "classes": 5}
        gray = {"resolution": 28, "first_resolution": 14, "channels": 1, "base": 7}
        if family == "mnist-pggan":
            result.append(Case(family, settings | gray | {"first_resolution": 7, "classes": 5}))
        else:
            result.append(Case(family, settings | coloured))
        if settings.get("attention"):
            gray |= {"attention": 14}
        if family == "biggan":
            gray |= {"latents": 15}
        result.append(Case(family, settings | gray))
    return result


@pytest.fixture(scope="module", params=cases(), ids=str)
def case(request) -> Case:
    return request.param


@pytest.fixture(scope="module")
def networks(case):
    torch.manual_seed(0)
    networks = models.build(case.family, **case.settings)
    for network in networks:
        network.double()
        for parameter in network.parameters():  # a gain of zero would hide what it scales
            parameter.data += 0.05 * torch.randn_like(parameter)
    return networks


@pytest.fixture
def inputs(case):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(8, case.settings["latents"], generator=generator, dtype=torch.float64)
    return latents, torch.arange(8) % (case.settings.get("classes") or 1)


def stages(networks) -> list[Stage]:
    """Every rung alone, and fades at alpha 0, in the middle, and near the end."""
    rungs = networks[0].rungs
    fades = [Stage(rung, alpha) for rung in rungs[1:] for alpha in (0.0, 0.4)]
    return [Stage(rung) for rung in rungs] + fades


def options(case: Case, generator, stage: Stage) -> dict[str, Any]:
    """Noise for families with styles, because its gains are parameters too."""
    has_styles = models.FAMILIES[case.family].config.has_styles
    return {"noise": generator.draw_noise(range(8), stage)} if has_styles else {}


def test_latents_of_another_length_are_refused(case, networks, inputs):
    latents, labels = inputs
    count = latents.shape[1]
    wide = torch.cat([latents, latents], dim=1)
    for stage in stages(networks):
        for wrong in (latents[:, :-1], wide[:, : count + 1], wide):
            with pytest.raises(RuntimeError):
                networks[0](wrong, labels, stage, **options(case, networks[0], stage))


def test_gradients_reach_every_active_parameter_and_no_inactive_one(case, networks, inputs):
    generator, discriminator = networks
    for stage in stages(networks):
        active = [network.activate(stage) for network in networks]
        images = generator(*inputs, stage, **options(case, generator, stage))
        assert images.shape == (8, case.settings["channels"], stage.resolution, stage.resolution)
        discriminator(images, inputs[1], stage).square().sum().backward()
        for network, used in zip(networks, active, strict=True):
            assert all(parameter.grad is not None for parameter in used)
            if stage.alpha > 0:
                silent = [
                    name
                    for name, parameter in network.named_parameters()
                    if parameter.requires_grad and parameter.grad.abs().sum() == 0
                ]
                assert silent == [], stage
            idle = {id(p) for p in network.parameters()} - {id(p) for p in used}
            assert all(p.grad is None for p in network.parameters() if id(p) in idle)
            network.zero_grad()


def test_on_a_gpu_enlarging_keeps_bf16():
    """Autocast on CUDA enlarges in fp32, and a fade takes no two dtypes; fake tensors do the same."""
    with FakeTensorMode():
        images = torch.empty(2, 3, 4, 4, dtype=torch.bfloat16, device="cuda")
        torch.set_autocast_enabled("cuda", True)
        try:
            assert growth.upsample(images).dtype == torch.bfloat16
        finally:
            torch.set_autocast_enabled("cuda", False)


def test_at_alpha_0_the_generator_draws_the_enlarged_rung_below(networks, inputs):
    generator = networks[0]
    for rung in generator.rungs[1:]:
        with torch.no_grad():
            faded = generator(*inputs, Stage(rung, 0.0))
            below = generator(*inputs, Stage(rung // 2))
        assert torch.equal(faded, growth.upsample(below))


def test_at_alpha_0_the_discriminator_sees_the_rung_below(case, networks, inputs):
    for rung in networks[1].rungs[1:]:
        images = torch.rand(8, case.settings["channels"], rung, rung, dtype=torch.float64)
        with torch.no_grad():
            faded = networks[1](images, inputs[1], Stage(rung, 0.0))
            below = networks[1](growth.downsample(images), inputs[1], Stage(rung // 2))
        torch.testing.assert_close(faded, below, rtol=0, atol=0)


def test_at_alpha_1_the_new_rung_stands_alone(networks, inputs):
    """Spoiling the head of the rung below changes nothing."""
    generator, discriminator = networks
    for rung in generator.rungs[1:]:
        results = []
        for factor in (1.0, 7.0):
            with torch.no_grad():
                for network in networks:
                    for parameter in network.heads[str(rung // 2)].parameters():
                        parameter.mul_(factor)
                images = generator(*inputs, Stage(rung, 1.0))
                results.append((images, discriminator(images, inputs[1], Stage(rung, 1.0))))
                for network in networks:
                    for parameter in network.heads[str(rung // 2)].parameters():
                        parameter.div_(factor)
        torch.testing.assert_close(*results, rtol=0, atol=0)


def test_the_fade_is_linear_between_the_two_rungs(networks, inputs):
    for rung in networks[0].rungs[1:]:
        with torch.no_grad():
            start, middle = (networks[0](*inputs, Stage(rung, alpha)) for alpha in (0.0, 0.25))
            end = networks[0](*inputs, Stage(rung))
        torch.testing.assert_close(middle, 0.75 * start + 0.25 * end)


def test_fused_resampling_is_the_same_function(networks, inputs):
    for stage in stages(networks):
        results = []
        for fused in (False, True):
            for network in networks:
                use_fused(network, fused)
            with torch.no_grad():
                images = networks[0](*inputs, stage)
                results.append((images, networks[1](images, inputs[1], stage)))
        torch.testing.assert_close(results[0], results[1], rtol=1e-8, atol=1e-9)


def test_labels_change_the_images_and_the_logits_where_there_are_classes(case, networks, inputs):
    latents, labels = inputs
    others = labels.roll(1)
    stage = Stage(networks[0].rungs[-1])
    with torch.no_grad():
        images = [networks[0](latents, chosen, stage) for chosen in (labels, others)]
        logits = [networks[1](images[0], chosen, stage) for chosen in (labels, others)]
    conditional = bool(case.settings.get("classes"))
    assert torch.equal(*images) is not conditional
    assert torch.equal(*logits) is not conditional


def test_a_ladder_of_one_rung_is_the_top_of_the_whole_one(case, inputs):
    single = case.settings | {"first_resolution": case.settings["resolution"]}
    whole, alone = (models.build(case.family, **settings) for settings in (case.settings, single))
    for network, part in zip(whole, alone, strict=True):
        assert len(part.rungs) == 1
        count = sum(p.numel() for p in part.parameters())
        stage = Stage(case.settings["resolution"])
        assert count == sum(p.numel() for p in network.activate(stage))


def test_a_stage_off_the_ladder_is_refused(networks, inputs):
    with pytest.raises(ValueError, match="no rung of 64"):
        networks[0](*inputs, Stage(64))
    with pytest.raises(ValueError, match="none below"):
        networks[0](*inputs, Stage(networks[0].rungs[0], 0.5))


@pytest.mark.slow
@given(st.sampled_from([4, 7, 8]), st.integers(0, 8))
def test_a_ladder_doubles_from_first_to_last(first, steps):
    rungs = shape.ladder(first, first * 2**steps)
    assert rungs[0] == first
    assert all(high == 2 * low for low, high in itertools.pairwise(rungs))
