"""Path lengths: closed forms for maps whose derivative is known, and the limit of small steps."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from service.metrics import path_length as module
from service.metrics.feature_set import FeatureSet
from service.metrics.path_length import lerp, path_length, slerp, trimmed_mean
from service.metrics.perceptual import perceptual_distance


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def squares(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return (first - second).square().sum(1)


def small_features() -> FeatureSet:
    """A network of two depths; no place of its maps is near 0, where directions turn at any speed."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2),
        nn.Softplus(0.05),
        nn.Conv2d(8, 12, 3, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    network = network.requires_grad_(False)
    none = np.zeros(0)
    return FeatureSet("small", "", 12, 16, network, none, none, torch.device("cpu"), ("1", "2"))


def test_straight_paths_through_a_linear_map_have_the_squared_length_of_their_images():
    start, end, matrix = normals(90, 6), normals(90, 6, seed=1), normals(6, 9, seed=2)
    length = path_length(
        lambda p, rows: p @ matrix, squares, (start, end), torch.linspace(0, 1, 90).double(), lerp
    )
    assert length == pytest.approx(float(((end - start) @ matrix).square().sum(1).mean()), rel=1e-9)


def test_arcs_between_directions_have_the_squared_angle():
    start, end = (nn.functional.normalize(normals(90, 6, seed=i)) for i in (0, 1))
    length = path_length(lambda p, rows: p, squares, (start, end), torch.zeros(90).double(), slerp)
    angles = torch.acos((start * end).sum(1))
    assert length == pytest.approx(float(angles.square().mean()), rel=1e-6)


@given(st.floats(0, 1), st.floats(0.1, 3.0), st.floats(0.5, 5), st.floats(0.5, 5))
def test_slerp_turns_and_stretches_evenly(share, angle, first, last):
    start = first * torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    end = last * torch.tensor([[np.cos(angle), np.sin(angle)]])
    x, y = slerp(start, end, torch.tensor([share]).double())[0].tolist()
    assert np.arctan2(y, x) == pytest.approx(share * angle, abs=1e-6)
    assert np.hypot(x, y) == pytest.approx((1 - share) * first + share * last, rel=1e-6)


def test_slerp_between_equal_points_stays_there():
    point = normals(3, 5)
    assert torch.allclose(slerp(point, 2 * point, torch.full((3,), 0.5).double()), 1.5 * point)


def test_one_percent_is_dropped_on_either_side():
    values = torch.arange(250.0).double()[torch.randperm(250)]
    values[values >= 248] = 1e9
    values[values < 2] = -1e9
    assert trimmed_mean(values) == np.arange(2, 248).mean()
    assert trimmed_mean(torch.tensor([1.0, 3.0])) == 2


def test_the_perceptual_distance_is_that_of_its_paper():
    features = small_features()
    first, second = (normals(4, 1, 12, 12, seed=i).tanh() for i in (0, 1))
    expected, x, y = (
        torch.zeros(4),
        *((127.5 * (z + 1)).float().repeat(1, 3, 1, 1) for z in (first, second)),
    )
    for i, layer in enumerate(features.network[:3]):
        x, y = layer(x), layer(y)
        if i in (1, 2):
            difference = nn.functional.normalize(x) - nn.functional.normalize(y)
            expected += (difference**2).sum(1).mean((1, 2))
    found = perceptual_distance(features, first, second)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert not perceptual_distance(features, first, first).any()
    assert not any(layer._forward_hooks for layer in features.network)


def test_the_length_is_the_limit_of_small_steps_and_not_of_rounding():
    """The square of the derivative of the directions along the path, by forward differentiation."""
    features = small_features()
    torch.manual_seed(1)
    generator = nn.Sequential(
        nn.Linear(6, 3 * 12 * 12), nn.Tanh(), nn.Unflatten(1, (3, 12, 12))
    ).double()
    generator.requires_grad_(False).requires_grad_(False)
    exact = [layer.double() for layer in copy.deepcopy(features.network)[:3]]
    start, end, shares = normals(40, 6), normals(40, 6, seed=1), torch.rand(40).double()

    def directions(share: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = (generator(slerp(start, end, share)) + 1) * 127.5
        first = exact[1](exact[0](x))
        return tuple(nn.functional.normalize(maps) for maps in (first, exact[2](first)))

    _, speeds = torch.func.jvp(directions, (shares,), (torch.ones_like(shares),))
    expected = sum(speed.square().sum(1).mean((1, 2)) for speed in speeds)
    with torch.no_grad():
        found = path_length(
            lambda p, rows: generator(p),
            lambda a, b: perceptual_distance(features, a, b),
            (start, end),
            shares,
            slerp,
        )
    assert found == pytest.approx(float(expected.mean()), rel=2e-3)


def test_how_many_are_drawn_at_once_changes_nothing(monkeypatch):
    start, end, matrix = normals(90, 6), normals(90, 6, seed=1), normals(90, 6, 4, seed=2)
    shares = torch.linspace(0, 1, 90).double()

    def draw(latents: torch.Tensor, rows: slice) -> torch.Tensor:
        return torch.einsum("bi,bij->bj", latents, matrix[rows]).tanh()

    lengths = []
    for batch in (1, 7, 90):
        monkeypatch.setattr(module, "BATCH", batch)
        lengths.append(path_length(draw, squares, (start, end), shares, slerp))
    assert lengths == pytest.approx([lengths[0]] * 3, rel=1e-9)
