"""Adam on a network's weights, in one fused operation."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


class Adam:
    """Adam (Kingma & Ba 2015, algorithm 1), in place, on all parameters that have a gradient.

    torch.optim.Adam does the same to the bit, and either loads the other's state; but its first step
    imports torch's compiler, which is a third of all that a worker imports before it trains.
    `state` is what it has gathered, by the parameter's number: `step`, a float32 scalar, and `exp_avg`
    and `exp_avg_sq`, of the parameter's shape. Rates, decays and epsilon are the owner's, never loaded.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], rate: float, betas: tuple[float, float], eps: float
    ):
        self.rate, self.betas, self.eps = rate, betas, eps
        self.state: dict[int, dict[str, Tensor]] = {}
        self._parameters = [*parameters]

    @torch.no_grad()
    def step(self) -> None:
        """Move each parameter that has a gradient; a parameter's averages begin at its first one."""
        moving = {i: p for i, p in enumerate(self._parameters) if p.grad is not None}
        if not moving:
            return
        for i, parameter in moving.items():
            if i not in self.state:
                self.state[i] = _beginning(parameter)
        gathered = [self.state[i] for i in moving]
        steps = [each["step"] for each in gathered]
        torch._foreach_add_(steps, 1)
        first, second = ([each[name] for each in gathered] for name in MOMENTS)
        torch._fused_adam_(
            [*moving.values()],
            [p.grad for p in moving.values() if p.grad is not None],
            first,
            second,
            [],
            steps,
            lr=self.rate,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=0.0,
            eps=self.eps,
            amsgrad=False,
            maximize=False,
        )

    def forget(self) -> None:
        """Begin all averages anew."""
        self.state.clear()

    def state_dict(self) -> dict[str, Any]:
        """What torch.optim.Adam's `state_dict` has, with the same tensors as `state`."""
        group = {
            "lr": self.rate,
            "betas": self.betas,
            "eps": self.eps,
            "weight_decay": 0,
            "amsgrad": False,
            "maximize": False,
            "foreach": None,
            "capturable": False,
            "differentiable": False,
            "fused": True,
            "decoupled_weight_decay": False,
            "params": [*range(len(self._parameters))],
        }
        return {"state": {i: dict(each) for i, each in self.state.items()}, "param_groups": [group]}

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Take over the averages of a `state_dict`; RuntimeError if they are of other parameters."""
        try:
            count = len(content["param_groups"][0]["params"])
            if count != len(self._parameters):
                raise RuntimeError(f"Adam's state has {count} parameters, not {len(self._parameters)}")
            self.state = {
                i: _like(parameter, content["state"][i])
                for i, parameter in enumerate(self._parameters)
                if i in content["state"]
            }
        except (TypeError, LookupError, AttributeError) as error:
            raise RuntimeError(f"no state of Adam for these weights: {error!r}") from error


def _beginning(parameter: nn.Parameter) -> dict[str, Tensor]:
    step = torch.zeros((), dtype=torch.float32, device=parameter.device)
    return {"step": step} | {
        name: torch.zeros_like(parameter, memory_format=torch.preserve_format) for name in MOMENTS
    }


def _like(parameter: nn.Parameter, saved: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of a parameter's averages, on its device."""
    averages = _beginning(parameter)
    for name, mine in averages.items():
        theirs = saved[name]
        if theirs.shape != mine.shape:
            raise RuntimeError(f"Adam's {name} is {[*theirs.shape]}, its weights {[*mine.shape]}")
        mine.copy_(theirs)
    return averages
