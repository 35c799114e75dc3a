"""The embedding of tokens, and how its gradient meets that of the head whose matrix it is."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class Embedding(nn.Embedding):
    """torch's. While it is `lending` it leaves its weight in `lent`, for the head: the gradient of a weight that comes
    from there is finished in place. Otherwise that of the rows would be a second matrix of V x C beside the head's.
    """

    lending = False
    lent: Tensor | None = None

    def forward(self, input: Int[Tensor, "*S"]) -> Float[Tensor, "*S C"]:
        if not self.lending:
            return super().forward(input)
        out: Tensor
        out, self.lent = _Rows.apply(self.weight, input)  # type: ignore[no-untyped-call]
        return out


class _Rows(torch.autograd.Function):
    """The tokens' rows of a weight, and the weight itself."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(tokens)
        ctx.set_materialize_grads(False)
        ctx.like = weight.shape
        return F.embedding(tokens, weight), weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, total: Tensor | None) -> tuple[Tensor | None, None]:
        if grad is None:
            return total, None
        (tokens,) = ctx.saved_tensors
        rows, places = tokens.flatten().unique(return_inverse=True)
        # Summed before they are added to the head's, in the order of the tokens: the numbers of torch.
        sums = grad.new_zeros(len(rows), grad.shape[-1]).index_add_(0, places, grad.flatten(0, -2))
        total = grad.new_zeros(ctx.like) if total is None else total
        return total.index_add_(0, rows, sums), None
