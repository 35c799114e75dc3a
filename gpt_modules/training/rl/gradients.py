"""Gradients of a policy and its critic, each by the name of its group in the optimizer: their norms, their clipping
apart, and a step without them.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gpt_modules.training.sharding.models import let_go
from gpt_modules.training.sharding.tensors import full, local


def named_groups(optimizer: Optimizer) -> dict[str, list[nn.Parameter]]:
    """The parameters of all groups that share a name."""
    named: dict[str, list[nn.Parameter]] = {}
    for group in optimizer.param_groups:
        named.setdefault(group["name"], []).extend(group["params"])
    return named


def grad_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The 2-norm of their gradients as one vector; 0 where there are none."""
    return full(nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None]))


def clip_gradients(parameters: Iterable[nn.Parameter], value: float | None, algorithm: str | None) -> None:
    """As the Trainer clips: their norm to `value`, or each number to ± `value`; none or 0 of it leaves them."""
    if not value:
        return
    clip = nn.utils.clip_grad_value_ if algorithm == "value" else nn.utils.clip_grad_norm_
    clip(parameters, value)


def drop_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """An optimizer's step then leaves them alone: weights, moments and count of steps, to the bit.

    The gradients have been computed, and that is what keeps processes together: each waits for all gradients of its
    peers.
    """
    for parameter in parameters:
        parameter.grad = None


def touch(model: nn.Module) -> Tensor:
    """A loss without a say: 0, and so is its gradient in every parameter, for processes that wait for one."""
    let_go(model)
    total: Tensor = sum((local(parameter).sum() for parameter in model.parameters()), torch.zeros(())) * 0.0
    return total
