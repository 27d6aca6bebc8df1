"""Gradients in one piece of memory: each parameter's own, exchanged together, in bf16 if so asked."""

from pathlib import Path

import pytest
import torch
from torch import nn

from service.engine import distributed
from service.engine.distributed import Workers
from service.engine.gradients import Gradients
from tests.workers import work_together

ALONE = Workers(0, 1, torch.device("cpu"))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(5 * 4, 7))
    return layers.to(memory_format=torch.channels_last)


def test_each_parameter_gets_the_gradient_that_it_gets_without():
    plain, gathered = network(), network()
    gradients = Gradients([*gathered.parameters()], ALONE)
    x = torch.randn(2, 3, 4, 4)
    for each in (plain, gathered):
        for part in x.split(1):  # in two backwards, which add up
            each(part).square().sum().backward()
    for ours, theirs in zip(gathered.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
        assert ours.grad.stride() == ours.stride()
    whole = torch.cat([p.grad.flatten() for p in plain.parameters()])
    torch.testing.assert_close(gradients.norm(), whole.norm())
    gradients.clear()
    assert all(not p.grad.any() for p in gathered.parameters())
    torch.optim.Adam(gathered.parameters(), fused=True).step()  # takes them as they lie


def work(compression: str, out: str) -> None:
    workers, layers = distributed.join(), network()
    gradients = Gradients([*layers.parameters()], workers, compression)
    layers(torch.full((1, 3, 4, 4), float(workers.index))).sum().backward()
    gradients.exchange()
    torch.save([p.grad for p in layers.parameters()], f"{out}/{workers.index}.pt")


@pytest.mark.slow
@pytest.mark.parametrize(("compression", "tolerance"), [("none", 1e-6), ("bf16", 1e-2)])
def test_workers_get_their_mean(compression, tolerance, tmp_path: Path):
    work_together(work, 2, tmp_path / "store", compression, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{index}.pt") for index in range(2))
    layers = network()
    sum(layers(torch.full((1, 3, 4, 4), float(index))).sum() for index in range(2)).div(2).backward()
    for one, other, parameter in zip(first, second, layers.parameters(), strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, parameter.grad, rtol=tolerance, atol=tolerance)
    exact = all(torch.equal(one, one.bfloat16().float()) for one in first)
    assert exact == (compression == "bf16")
