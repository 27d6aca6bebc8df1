"""Layers that look at the whole batch, on two gloo processes, against one process with all of it."""

from pathlib import Path

import pytest
import torch

from models.layers import BatchNorm, Groups, use_groups
from service.engine import distributed
from service.engine.distributed import Workers
from tests.workers import work_together

WORKERS = 2
BATCH = 12


def measure(workers: Workers, conditioning: int | None) -> dict[str, torch.Tensor]:
    """Outputs, gradients and gradients of a penalty on gradients, of this worker's share."""
    torch.manual_seed(0)
    layer = BatchNorm(3, conditioning).double()
    for parameter in layer.parameters():
        parameter.data += torch.rand_like(parameter)
    peers = workers.peers(workers.count)
    use_groups(layer, Groups(1, peers.count, peers.sum, peers.gather))
    share = workers.share(0, BATCH)
    x = (torch.randn(BATCH, 3, 4, 4, dtype=torch.float64) * 2 + 1)[share].requires_grad_()
    weights = torch.randn(BATCH, 3, 4, 4, dtype=torch.float64)[share]
    condition = torch.randn(BATCH, conditioning or 1, dtype=torch.float64)[share]
    y = layer(x, condition if conditioning else None)
    (dx,) = torch.autograd.grad((y.pow(3) * weights).sum(), x, create_graph=True)
    plain = torch.autograd.grad((layer(x, condition if conditioning else None) * weights).sum(), x)[0]
    dx.square().sum().backward()
    assert x.grad is not None
    results = {"y": y.detach(), "dx": dx.detach(), "plain dx": plain, "ddx": x.grad}
    summed = {name: workers.sum(p.grad) for name, p in layer.named_parameters() if p.grad is not None}
    return results | summed


def work(conditioning: int | None, out: str) -> None:
    workers = distributed.join()
    torch.save(measure(workers, conditioning), f"{out}/{workers.index}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("conditioning", [None, 2])
def test_batch_norm_on_two_workers_is_that_of_the_whole_batch(conditioning, tmp_path: Path):
    """Forward, backward, and the backward of a gradient penalty."""
    whole = measure(Workers(0, 1, torch.device("cpu")), conditioning)
    work_together(work, WORKERS, tmp_path / "store", conditioning, str(tmp_path))
    shares = [torch.load(tmp_path / f"{index}.pt") for index in range(WORKERS)]
    for name, expected in whole.items():
        if len(expected) == BATCH:
            actual = torch.empty_like(expected)
            for index, share in enumerate(shares):
                actual[index::WORKERS] = share[name]
        else:
            actual = shares[1][name]
        torch.testing.assert_close(actual, expected, msg=lambda text, name=name: f"{name}: {text}")
