"""What stands between the two layers of an MLP."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gpt_modules.backbone.config import Activation

_SLOPE = 2 * math.sqrt(2 / math.pi)
_CUBIC = 0.044715 * _SLOPE


def gelu_tanh(x: Float[Tensor, "*S I"]) -> Float[Tensor, "*S I"]:
    """x / 2 (1 + tanh(√(2/π) (x + 0.044715 x³))) (Hendrycks and Gimpel 2016, section 2): GELU as GPT-1 and 2 have it.

    torch's own but for float32 on a CPU, where its tanh takes as long as a tenth of the product before it: there it is
    the same function as x σ(2 √(2/π) (x + 0.044715 x³)), with the gradient that torch has for it.
    """
    if x.dtype != torch.float32 or not x.is_cpu or torch.compiler.is_compiling():
        return F.gelu(x, approximate="tanh")
    if not torch.is_grad_enabled():
        return _by_sigmoid(x)
    out: Tensor = _GELU.apply(x)  # type: ignore[no-untyped-call]
    return out


def _by_sigmoid(x: Float[Tensor, "*S I"]) -> Float[Tensor, "*S I"]:
    slope = torch.scalar_tensor(_SLOPE, dtype=x.dtype, device=x.device)
    return torch.addcmul(slope, x, x, value=_CUBIC).mul_(x).sigmoid_().mul_(x)


class _GELU(torch.autograd.Function):
    """Keeps what enters alone, as torch does."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return _by_sigmoid(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        slope: Tensor = torch.ops.aten.gelu_backward(grad, *ctx.saved_tensors, approximate="tanh")
        return slope


def swiglu(x: Float[Tensor, "*S I"]) -> Float[Tensor, "*S J"]:
    """silu(gate) x value of the two halves (Shazeer 2020, equation 6)."""
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": gelu_tanh,
    "gelu": F.gelu,
    "relu": F.relu,
    "swiglu": swiglu,
}
