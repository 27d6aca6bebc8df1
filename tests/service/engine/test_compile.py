"""Compiled networks train as plain ones do; what cannot be compiled is logged, and called as it is."""

import functools
import logging

import pytest
import torch
from torch import nn
from torch._dynamo.backends.debugging import aot_eager

from benchmarks import gpu
from service.engine import step as steps
from service.engine.compile import Compiled

CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.no_cover  # the compiler is written in Python, and tracing it takes long
@pytest.mark.parametrize(("family", "cycles"), [("progan", 2), ("biggan", 1)])
def test_compiled_networks_train_as_they_do_without(family, cycles, monkeypatch, caplog):
    """Both networks whole, ProGAN's with a penalty and into a fade; traced, no machine code made."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    traced = functools.partial(Compiled, backend=backend)
    monkeypatch.setattr(steps, "Compiled", traced)
    torch._dynamo.reset()
    compiled = gpu.losses(gpu.small(family, images=16, compile=True), CPU, cycles)
    plain = gpu.losses(gpu.small(family, images=16), CPU, cycles)
    torch.testing.assert_close(compiled, plain, rtol=2e-3, atol=1e-4)
    assert not [record for record in caplog.records if record.name.startswith("service.engine")]
    assert torch._dynamo.utils.counters["graph_break"] == {}
    assert len(graphs) >= 4  # each network with gradients and without, or with other inputs


def test_a_network_that_cannot_be_compiled_is_logged_and_called_as_it_is(caplog):
    def backend(*_: object) -> None:
        raise RuntimeError("no compiler here\nand more")

    call = Compiled(nn.ReLU(), backend=backend)
    with caplog.at_level(logging.WARNING):
        assert [call(torch.ones(2)).tolist() for _ in range(2)] == [[1, 1], [1, 1]]
    (warning,) = [r.getMessage() for r in caplog.records if r.name.startswith("service.engine")]
    assert "event=not_compiled" in warning
    assert "no compiler here" in warning
