"""The linear layer of a block, and by whose kernels a CPU multiplies in it (tests/benchmarks/RESULTS.md)."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

# Multiplications of a product from which on it gains more than it costs to be asked for from Python.
LARGE = 2**24
# Of both sides of a matrix, from which on making its input again is little beside its products.
WIDE = 512


class Linear(nn.Linear):
    """torch's. Where all rows that are learnt from are of `one_width`, a CPU with AVX-512 multiplies float32 forward
    and by the gradient with oneDNN's kernels in place of MKL's: 4 to 20 % faster on AMD's, as they add the bias, too.
    They are made for a number of rows, a few milliseconds and 3 MB each, hence for one width only.
    """

    one_width = False

    def forward(self, input: Float[Tensor, "*S I"]) -> Float[Tensor, "*S O"]:
        """With these kernels, a wide layer does not keep what is `made_again`."""
        learning = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if not (self.one_width and learning and self._fits(input)):
            return super().forward(input)
        made = _how(input) if min(self.weight.shape) >= WIDE else ()
        out: Tensor = _Product.apply(input, self.weight, self.bias, *made)  # type: ignore[no-untyped-call]
        return out

    def _fits(self, input: Tensor) -> bool:
        plain = input.dtype == self.weight.dtype == torch.float32 and input.is_cpu
        large = input.numel() * self.out_features >= LARGE
        return plain and large and _has_kernels() and not torch.is_autocast_enabled("cpu")


@functools.cache
def _has_kernels() -> bool:
    there = torch.backends.cpu.get_cpu_capability() == "AVX512" and torch._C._has_mkldnn
    return there and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class _Made(NamedTuple):
    make: Callable[..., Tensor]
    sources: tuple[Tensor, ...]
    version: int  # of what was made: an operation in place counts


_MADE = "_made_again"


def made_again(make: Callable[..., Tensor], *sources: Tensor) -> Tensor:
    """make(*sources), of which a layer that reads it may keep the sources alone and make it again for the gradient of
    its weight: for what is cheap to make, of tensors that are kept anyway.
    """
    out = make(*sources)
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        setattr(out, _MADE, _Made(make, sources, out._version))
    return out


def _how(input: Tensor) -> tuple[Any, ...]:
    made: _Made | None = getattr(input, _MADE, None)
    return (made.make, *made.sources) if made and made.version == input._version else ()


class _Product(torch.autograd.Function):
    """input · weightᵀ + bias. Of the gradient of the weight both kinds of kernels are as fast: it is left to torch."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        make: Callable[..., Tensor] | None = None,
        *sources: Tensor,
    ) -> Tensor:
        ctx.make = make
        ctx.save_for_backward(weight, *(sources if make else (input,)))
        out: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, *kept = ctx.saved_tensors
        to_input, to_weight, to_bias = ctx.needs_input_grad[:3]
        rows = grad.flatten(0, -2)
        return (
            _Product.apply(grad, weight.t(), None) if to_input else None,  # type: ignore[no-untyped-call]
            rows.t() @ (ctx.make(*kept) if ctx.make else kept[0]).flatten(0, -2) if to_weight else None,
            rows.sum(0) if to_bias else None,
            *[None] * (len(ctx.needs_input_grad) - 3),
        )
