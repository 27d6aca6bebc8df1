"""Our Adam against torch's: the same weights to the bit, and either's state in the other."""

import copy

import pytest
import torch
from torch import nn

from service.engine.adam import Adam
from tests.conftest import assert_equal

RATE, BETAS, EPS = 0.01, (0.5, 0.99), 1e-6


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 4))
    return layers.to(memory_format=torch.channels_last)


def ours(layers: nn.Module) -> Adam:
    return Adam(layers.parameters(), RATE, BETAS, EPS)


def theirs(layers: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(layers.parameters(), lr=RATE, betas=BETAS, eps=EPS, fused=True)


def train(layers: nn.Sequential, optimizer, first: int, last: int) -> None:
    """Steps on data of their own; the convolution has no gradient before the third."""
    for i in range(first, last):
        images = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(i))
        layers.zero_grad(set_to_none=True)
        layers(images).square().mean().backward()
        if i < 2:
            layers[0].zero_grad(set_to_none=True)
        optimizer.step()


def test_it_moves_weights_as_torch_does_to_the_bit():
    mine, other = network(), network()
    adam, reference = ours(mine), theirs(other)
    train(mine, adam, 0, 6)
    train(other, reference, 0, 6)
    assert_equal([*mine.state_dict().values()], [*other.state_dict().values()])
    assert_equal(adam.state_dict(), reference.state_dict())


@pytest.mark.parametrize(("first", "second"), [(ours, theirs), (theirs, ours), (ours, ours)])
def test_either_goes_on_from_the_others_state(first, second):
    whole, halves = network(), network()
    train(whole, ours(whole), 0, 6)
    optimizer = first(halves)
    train(halves, optimizer, 0, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer = second(halves)
    optimizer.load_state_dict(saved)
    train(halves, optimizer, 3, 6)
    assert_equal([*halves.state_dict().values()], [*whole.state_dict().values()])


def test_the_rates_are_the_owners_whatever_was_saved():
    layers = network()
    adam = ours(layers)
    train(layers, adam, 0, 3)
    other = Adam(layers.parameters(), 0.5, (0.0, 0.9), 1e-8)
    other.load_state_dict(adam.state_dict())
    assert (other.rate, other.betas, other.eps) == (0.5, (0.0, 0.9), 1e-8)


def test_what_it_forgets_begins_at_its_first_step():
    layers = network()
    adam = ours(layers)
    train(layers, adam, 0, 3)
    adam.forget()
    train(layers, adam, 3, 5)
    assert {int(entry["step"]) for entry in adam.state.values()} == {2}


@pytest.mark.parametrize(
    "damage",
    [
        lambda saved: saved.pop("state"),
        lambda saved: saved.update(state=3),
        lambda saved: saved["state"].update({3: {"step": torch.zeros(())}}),
        lambda saved: saved["state"][0].update(exp_avg=torch.zeros(2)),
        lambda saved: saved["state"][0].update(exp_avg=2.0),
        lambda saved: saved["state"][0].pop("exp_avg_sq"),
        lambda saved: saved["param_groups"][0]["params"].pop(),
        lambda saved: saved.update(param_groups=[3]),
    ],
)
def test_the_state_of_other_weights_is_refused(damage):
    layers = network()
    adam = ours(layers)
    train(layers, adam, 0, 3)
    saved = copy.deepcopy(adam.state_dict())
    damage(saved)
    with pytest.raises(RuntimeError, match="Adam"):
        ours(layers).load_state_dict(saved)
