"""GELU on a CPU is torch's, values and slopes of both orders, alone and under `torch.func`."""

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt_modules.backbone.activations import gelu_tanh

X = torch.cat([torch.linspace(-12, 12, 2001), torch.tensor([-1e20, -88.0, 0.0, 88.0, 1e20])])


def exact(x: Tensor) -> Tensor:
    return F.gelu(x.double(), approximate="tanh")


def slopes(function: object, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    first = torch.autograd.grad(function(x).sum(), x, create_graph=True)[0]  # type: ignore[operator]
    return [first, torch.autograd.grad(first.sum(), x)[0]]


def test_gelu_is_that_of_torch_to_the_last_digits() -> None:
    with torch.no_grad():
        torch.testing.assert_close(gelu_tanh(X).double(), exact(X), atol=1e-6, rtol=2e-7)
    torch.testing.assert_close(gelu_tanh(X).double(), exact(X), atol=1e-6, rtol=2e-7)


def test_its_slopes_are_those_of_torch() -> None:
    for found, expected in zip(slopes(gelu_tanh, X[:2001]), slopes(exact, X[:2001]), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


def test_tasks_go_through_it_at_once() -> None:
    """As MAML's do: a gradient of each row, by `vmap`."""
    rows = X[:2000].view(4, 500)
    found = torch.vmap(torch.func.grad(lambda row: gelu_tanh(row).square().sum()))(rows)
    alone = rows.clone().requires_grad_()
    torch.testing.assert_close(found, torch.autograd.grad(F.gelu(alone, approximate="tanh").square().sum(), alone)[0])


def test_bfloat16_is_left_to_torch() -> None:
    half = X.bfloat16()
    assert torch.equal(gelu_tanh(half), F.gelu(half, approximate="tanh"))
