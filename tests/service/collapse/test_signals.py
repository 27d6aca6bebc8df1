"""What the signals say, against numpy, by definition and over any division among workers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from service.collapse.signals import Spectra, compare, crowd, largest, sums, view_size

CHANNELS, GROUPS = 3, 4


def draw(seed: int, count: int, resolution: int = 8):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, CHANNELS, resolution, resolution, generator=generator) * 2 - 1
    features = torch.randn(count, 5, generator=generator)
    logits = torch.randn(count, generator=generator)
    groups = torch.randint(GROUPS, (count,), generator=generator)
    return images, features, logits, groups


def crowd_of(images, features, logits, groups, boundary=0.0):
    total = sums(images, features, logits, groups, GROUPS, boundary)
    return crowd(total, view_size(images.shape[2], CHANNELS))


def test_a_crowd_is_what_numpy_finds():
    images, features, logits, groups = draw(0, 40)
    ours = crowd_of(images, features, logits, groups, boundary=0.25)
    x = images.double().flatten(1).numpy()
    assert ours.count == 40
    np.testing.assert_allclose(ours.pixels, x.mean(0), atol=1e-12)
    assert ours.pixels_spread == pytest.approx(math.sqrt(x.var(0, ddof=1).mean()))
    inner = sum(((x[groups == g] - x[groups == g].mean(0)) ** 2).sum() for g in range(GROUPS))
    assert ours.pixels_within == pytest.approx(math.sqrt(inner / (40 - GROUPS) / x.shape[1]))
    wide = features.double().numpy()
    assert ours.features_spread == pytest.approx(math.sqrt(wide.var(0, ddof=1).sum()))
    assert ours.logit == pytest.approx(logits.double().mean().item())
    assert ours.logit_spread == pytest.approx(logits.double().numpy().std())
    assert ours.above == (logits > 0.25).double().mean().item()
    rows = np.diff(images.double().numpy(), axis=2) ** 2
    columns = np.diff(images.double().numpy(), axis=3) ** 2
    assert ours.roughness == pytest.approx(math.sqrt((rows.mean() + columns.mean()) / 2))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 3), st.integers(12, 30))
def test_sums_of_shares_are_those_of_the_whole(seed, workers, count):
    whole = draw(seed, count)
    total = sums(*whole, GROUPS, 0.0)
    shares = [sums(*(part[w::workers] for part in whole), GROUPS, 0.0) for w in range(workers)]
    torch.testing.assert_close(torch.stack(shares).sum(0), total, rtol=1e-12, atol=1e-12)


def test_images_like_the_real_ones_give_ratios_of_1_and_differences_of_0():
    signals = compare(crowd_of(*draw(1, 2000)), crowd_of(*draw(2, 2000)))
    for name in ("variety_pixels", "variety_features", "within_pixels", "within_features", "roughness"):
        assert signals[name] == pytest.approx(1, abs=0.05), name
    assert signals["shift"] < 0.06
    assert abs(signals["saturation"]) < 0.01


def test_each_signal_tells_its_own_trouble():
    real = crowd_of(*draw(1, 400))
    images, features, logits, groups = draw(2, 400)
    means = torch.stack([images[groups == g].mean(0) for g in range(GROUPS)])
    one_a_class = compare(crowd_of(means[groups], features, logits, groups), real)
    assert one_a_class["within_pixels"] < 1e-6 < one_a_class["variety_pixels"]
    one_of_all = compare(crowd_of(images[:1].expand_as(images), features, logits, groups), real)
    assert one_of_all["variety_pixels"] < 1e-6
    smooth = images.mean((2, 3), keepdim=True).expand_as(images)
    assert compare(crowd_of(smooth, features, logits, groups), real)["roughness"] == 0
    black = compare(crowd_of(torch.full_like(images, -1.0), features, logits, groups), real)
    assert black["saturation"] > 0.97
    # −1 lies √3 standard deviations below the mean of what is even in [−1, 1]
    assert black["shift"] == pytest.approx(math.sqrt(3), rel=0.03)


def test_of_one_image_a_class_nothing_is_said_about_its_variety():
    images, features, logits, _ = draw(3, GROUPS)
    ours = crowd_of(images, features, logits, torch.arange(GROUPS))
    assert math.isnan(ours.pixels_within)
    assert ours.pixels_spread > 0
    signals = compare(ours, crowd_of(*draw(1, 400)))
    assert math.isnan(signals["within_pixels"])
    assert signals["variety_pixels"] > 0


def test_without_real_images_there_is_nothing_to_compare_with():
    fake = draw(3, 8)
    nothing = crowd(torch.zeros_like(sums(*fake, GROUPS, 0.0)), view_size(8, CHANNELS))
    signals = compare(crowd_of(*fake), nothing)
    assert all(math.isnan(value) for value in signals.values())


def test_large_images_are_compared_when_shrunk():
    images, features, logits, groups = draw(4, 6, resolution=64)
    assert view_size(64, CHANNELS) == 16 * 16 * CHANNELS
    shrunk = torch.nn.functional.avg_pool2d(images, 4)
    ours = crowd_of(images, features, logits, groups)
    torch.testing.assert_close(ours.pixels, shrunk.flatten(1).double().mean(0))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(6, 10, 3), nn.Conv2d(10, 4, 1), nn.Linear(12, 2), nn.BatchNorm1d(2))


def exact(weight: torch.Tensor) -> torch.Tensor:
    return torch.linalg.svdvals(weight.detach().flatten(1).double())[:3]


def test_kept_warm_the_iteration_follows_singular_values_as_weights_change(network):
    spectra = Spectra({"g": network})
    spectra.values(30)
    for _ in range(20):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.02 * torch.randn_like(parameter)
        values = spectra.values()
    assert set(values) == {"g/0.weight", "g/1.weight", "g/2.weight"}
    for name, top in values.items():
        expected = exact(network.get_parameter(name.removeprefix("g/")))
        torch.testing.assert_close(
            torch.tensor(top[: len(expected)]).double(), expected, rtol=0.03, atol=0
        )
    assert values["g/2.weight"][2] == 0  # a matrix of two rows has two


def test_an_explosion_is_seen_at_once(network):
    spectra = Spectra({"g": network})
    before = spectra.values(10)["g/0.weight"]
    with torch.no_grad():
        network[0].weight *= 50
    assert spectra.values()["g/0.weight"][0] == pytest.approx(50 * before[0], rel=0.05)


def test_stable_ranks_are_those_of_the_whole_spectrum(network):
    with torch.no_grad():
        network[1].weight.zero_()
        network[2].weight.copy_(torch.outer(torch.ones(2), torch.arange(12.0)))  # of rank one
    spectra = Spectra({"g": network})
    ranks = spectra.stable_ranks(spectra.values(50))
    singular = torch.linalg.svdvals(network[0].weight.detach().flatten(1).double())
    expected = singular.square().sum() / singular[0].square()
    assert ranks["g/0.weight"] == pytest.approx(expected.item(), rel=1e-4)
    assert math.isnan(ranks["g/1.weight"])
    assert ranks["g/2.weight"] == pytest.approx(1, rel=1e-6)
    with torch.no_grad():
        network[0].weight[0, 0, 0, 0] = math.inf
    assert math.isnan(spectra.stable_ranks(spectra.values())["g/0.weight"])
    assert Spectra({}).stable_ranks({}) == {}


def test_the_largest_singular_value_is_told_by_network(network):
    other = nn.Linear(5, 7)
    values = largest(Spectra({"generator": network, "discriminator": other}).values(50))
    norms = [torch.linalg.matrix_norm(p.flatten(1), 2) for p in network.parameters() if p.ndim > 1]
    assert values["spectrum_generator"] == pytest.approx(max(norms).item(), rel=1e-3)
    expected = torch.linalg.matrix_norm(other.weight, 2).item()
    assert values["spectrum_discriminator"] == pytest.approx(expected, rel=1e-3)


def test_weights_that_are_not_finite_leave_vectors_that_recover(network):
    spectra = Spectra({"g": network})
    good = network[0].weight.detach().clone()
    with torch.no_grad():
        network[0].weight[0, 0, 0, 0] = math.nan
    spectra.values()
    with torch.no_grad():
        network[0].weight.copy_(good)
    top = spectra.values(20)["g/0.weight"]
    torch.testing.assert_close(torch.tensor(top).double(), exact(good), rtol=0.02, atol=0)


@pytest.mark.parametrize(
    "spectrum", [(1, 0, 0, 0), (1, 1, 1, 1), (1e4, 1, 1e-3, 1e-4), (0, 0, 0, 0), (3, 2, 0, 0)]
)
def test_any_spectrum_is_found_of_few_directions_or_of_none(spectrum):
    layer = nn.Linear(6, 4, bias=False)
    left, right = (torch.linalg.qr(torch.randn(n, n, generator=draws(n)).double()).Q for n in (4, 6))
    with torch.no_grad():
        layer.weight.copy_(left @ torch.diag(torch.tensor(spectrum).double()) @ right[:4])
    spectra = Spectra({"g": layer})
    (top,) = spectra.values(40).values()
    found, scale = torch.tensor(top), max(spectrum)
    torch.testing.assert_close(found, torch.tensor(spectrum[:3]).float(), rtol=1e-3, atol=2e-6 * scale)
    (vectors,) = spectra.state_dict().values()
    assert torch.isfinite(vectors).all()


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_vectors_resume_and_refuse_those_of_other_weights(network):
    spectra, other = Spectra({"g": network}), Spectra({"g": network})
    spectra.values(5)
    other.load_state_dict({k: v.clone() for k, v in spectra.state_dict().items()})
    assert other.values() == spectra.values()
    with pytest.raises(RuntimeError, match="other weights"):
        other.load_state_dict({"g/0.weight": torch.zeros(2, 3)})
