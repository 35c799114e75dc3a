"""Log-probabilities of tokens, from logits or straight from hidden states.

The logits of one batch of GPT-2 are the largest tensor of its training step: B x T x 50257. `linear_cross_entropy` and
`linear_logprobs` multiply by the head a few rows at a time and never hold more than one chunk of logits. Both compute
the softmax in float32 and the matrix products in autocast's type when that is bfloat16; gradients of the head's weight
add up in float32 either way.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Logits held at a time. CPU: 64 MiB of float32, where the products already run at full speed. An accelerator needs
# larger products.
_CPU_CHUNK_ELEMENTS = 2**24
_ACCELERATOR_CHUNK_ELEMENTS = 2**27


def token_logprobs(
    logits: Float[Tensor, "*batch V"], tokens: Int[Tensor, "*batch"], temperature: float = 1.0
) -> Float[Tensor, "*batch"]:
    """log π(token) in nats, float32, where π = softmax(logits / temperature).

    log π(a) = z_a - log Σᵥ exp(zᵥ),   z = logits / temperature

    The temperature of the sampler belongs in the old, the new and the reference pass alike (Ziegler et al. 2019,
    `policy.py` of its code).
    """
    scaled = _at_least_float32(logits) / temperature
    return scaled.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - scaled.logsumexp(-1)


def entropy(logits: Float[Tensor, "*batch V"], temperature: float = 1.0) -> Float[Tensor, "*batch"]:
    """Entropy of softmax(logits / temperature) in nats, float32; ids cut to -inf contribute 0.

    H = -Σᵥ πᵥ log πᵥ
    """
    logprobs = (_at_least_float32(logits) / temperature).log_softmax(-1)
    # 0 · log 0 is 0: select the cut ids away before the product, or it and its gradient are NaN.
    return -(logprobs.exp() * torch.where(logprobs.isneginf(), 0.0, logprobs)).sum(-1)


def linear_cross_entropy(
    hidden: Float[Tensor, "N C"],
    weight: Float[Tensor, "V C"],
    labels: Int[Tensor, "N"],
    ignore_index: int = -100,
    chunk: int | None = None,
    row_weights: Float[Tensor, "N"] | None = None,
) -> Float[Tensor, ""]:
    """Sum, in float32 nats, of the cross-entropies of softmax(hidden · weightᵀ) at labels other than `ignore_index`.

    loss = Σₙ aₙ [ log Σᵥ exp(hₙ·wᵥ) - hₙ·w_yₙ ];   ∂loss/∂logits = a (π - onehot(y))

    Equal to `F.cross_entropy(hidden @ weight.T, labels, reduction="sum")` where no `row_weights` a are given. They are
    constants; rows that weigh 0 are ignored as well. Ignored rows are dropped before the product and cost nothing; no
    label that counts gives 0. The gradients are formed along with the loss, chunk by chunk, so nothing is recomputed: a
    loss is a scalar, and backward only scales them. `chunk` is the number of rows at a time, by default as many as fit
    the device. Finding the counted rows waits for the device once. Second derivatives raise, and so do weights that
    want a gradient.
    Source of the method: Hsu et al. 2024, "Liger Kernel: Efficient Triton Kernels for LLM Training".
    """
    if row_weights is not None and row_weights.requires_grad:
        raise ValueError("row_weights: found requires_grad, expected constants: they get no gradient")
    counts = labels != ignore_index
    rows = (counts if row_weights is None else counts & (row_weights != 0)).nonzero().squeeze(1)
    counted = hidden.index_select(0, rows)
    weights = None if row_weights is None else row_weights.index_select(0, rows)
    # Under no_grad a tensor still says requires_grad, and a Function still sees it.
    wanted = (torch.is_grad_enabled() and hidden.requires_grad, torch.is_grad_enabled() and weight.requires_grad)
    dtype = _compute_dtype(hidden)
    with torch.autocast(hidden.device.type, enabled=False):
        loss: Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
            counted, weight, labels.index_select(0, rows), weights, chunk, dtype, wanted
        )
    return loss


def linear_logprobs(
    hidden: Float[Tensor, "*batch C"],
    weight: Float[Tensor, "V C"],
    tokens: Int[Tensor, "*batch"],
    temperature: float = 1.0,
    chunk: int | None = None,
    differentiable_entropy: bool = False,
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """`token_logprobs` and `entropy` of softmax(hidden · weightᵀ / temperature), in float32 nats, without the logits.

    ∂log π(a)/∂z = onehot(a) - π;   ∂H/∂zᵥ = -πᵥ (log πᵥ + H)

    Backward computes each chunk's logits again, because here every token has a gradient of its own that is not known
    before. The entropy is a statistic, without gradient, unless `differentiable_entropy`. `chunk`: as in
    `linear_cross_entropy`. Second derivatives raise.
    """
    settings = (temperature, chunk, _compute_dtype(hidden), differentiable_entropy)
    with torch.autocast(hidden.device.type, enabled=False):
        logprobs, entropies = _LinearLogprobs.apply(  # type: ignore[no-untyped-call]
            hidden.flatten(0, -2), weight, tokens.flatten(), *settings
        )
    return logprobs.view(tokens.shape), entropies.view(tokens.shape)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        row_weights: Tensor | None,
        chunk: int | None,
        dtype: torch.dtype,
        wanted: tuple[bool, bool],
    ) -> Tensor:
        head = _ChunkedHead(hidden, weight, wanted, chunk, dtype)
        loss = torch.zeros((), dtype=head.wide, device=hidden.device)
        by_row = loss.new_ones(len(labels)) if row_weights is None else row_weights.to(head.wide)
        for rows, logits in head:
            label, weights = labels[rows].unsqueeze(1), by_row[rows].unsqueeze(1)
            largest, target = logits.amax(1, keepdim=True), logits.gather(1, label)
            total = logits.sub_(largest).exp_().sum(1, keepdim=True)
            loss += (weights * (largest + total.log() - target)).sum()
            if any(wanted):
                # Weights in the divisor, which is one a row: scaling the slopes would be one more pass over V.
                head.backward_(rows, logits.div_(total / weights).scatter_add_(1, label, -weights))
        ctx.save_for_backward(head.grad_hidden, head.grad_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivatives()
        # Not in place: a graph that is retained may be walked again.
        hidden, weight = (None if grad is None else grad * grad_loss for grad in ctx.saved_tensors)
        return hidden, weight, None, None, None, None, None


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        tokens: Tensor,
        temperature: float,
        chunk: int | None,
        dtype: torch.dtype,
        differentiable_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.settings = (chunk, dtype, temperature)
        ctx.differentiable_entropy = differentiable_entropy
        head = _ChunkedHead(hidden, weight, (False, False), *ctx.settings)
        logprobs, entropies, normalisers = (torch.empty_like(tokens, dtype=head.wide) for _ in range(3))
        probs_buffer = torch.empty_like(head.buffer)
        for rows, logits in head:
            largest = logits.amax(1, keepdim=True)
            target = logits.gather(1, tokens[rows].unsqueeze(1)).squeeze(1)
            weights = torch.exp(logits.sub_(largest), out=probs_buffer[: len(logits)])
            total = weights.sum(1)
            normalisers[rows] = largest.squeeze(1) + total.log()
            logprobs[rows] = target - normalisers[rows]
            entropies[rows] = total.log() - torch.linalg.vecdot(weights, logits) / total
        ctx.save_for_backward(hidden, weight, tokens, normalisers, entropies)
        if not differentiable_entropy:
            ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, grad_logprobs: Tensor, grad_entropies: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivatives()
        hidden, weight, *by_row = ctx.saved_tensors
        head = _ChunkedHead(hidden, weight, ctx.needs_input_grad[:2], *ctx.settings)
        for rows, logits in head:
            of_rows = (tensor[rows].unsqueeze(1) for tensor in (*by_row, grad_logprobs, grad_entropies))
            token, normaliser, entropies, by_logprob, by_entropy = of_rows
            logprobs = logits.sub_(normaliser)
            if ctx.differentiable_entropy:
                probs = logprobs.exp()
                slopes = logprobs.add_(entropies).mul_(by_entropy).add_(by_logprob).mul_(probs)
            else:
                slopes = logprobs.exp_().mul_(by_logprob)
            head.backward_(rows, slopes.scatter_add_(1, token, -by_logprob))
        # The slopes have the sign of -∂/∂z: one scaling of the sums is cheaper than one of every chunk.
        grads = (None if g is None else g.mul_(-1.0 / head.temperature) for g in (head.grad_hidden, head.grad_weight))
        return *grads, None, None, None, None, None


class _ChunkedHead:
    """One pass over hidden · weightᵀ / temperature: iterating yields (rows, their logits), in one buffer throughout."""

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        wanted: tuple[bool, bool],
        chunk: int | None,
        dtype: torch.dtype,
        temperature: float = 1.0,
    ) -> None:
        self.wide = torch.promote_types(hidden.dtype, torch.float32)
        self.hidden, self.weight = hidden.to(dtype), weight.to(dtype)
        self.temperature = temperature
        self.chunk = _balanced_chunk(hidden, weight, chunk)
        # One buffer throughout: fresh memory for every chunk costs the operating system more than the softmax costs us.
        self.buffer = torch.empty(self.chunk, len(weight), dtype=self.wide, device=hidden.device)
        self.grad_hidden = torch.zeros_like(hidden, dtype=self.wide) if wanted[0] else None
        self.grad_weight = torch.zeros_like(weight, dtype=self.wide) if wanted[1] else None

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, len(self.hidden), self.chunk):
            rows = slice(start, start + self.chunk)
            logits = self.buffer[: len(self.hidden[rows])]
            if self.hidden.dtype == self.wide:
                torch.mm(self.hidden[rows], self.weight.T, out=logits)
            else:
                logits.copy_(self.hidden[rows] @ self.weight.T)
            yield rows, logits if self.temperature == 1 else logits.div_(self.temperature)

    def backward_(self, rows: slice, grad_logits: Tensor) -> None:
        """Add these rows' share to the gradients that are wanted, as if the temperature were 1."""
        grad_logits = grad_logits.to(self.hidden.dtype)
        if self.grad_hidden is not None:
            _add_product_(self.grad_hidden[rows], grad_logits, self.weight)
        if self.grad_weight is not None:
            _add_product_(self.grad_weight, grad_logits.T, self.hidden[rows])


def _add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, rounded to the operands' type only where total's is wider."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)


def _refuse_second_derivatives() -> None:
    # autograd's own once_differentiable would let constants through in place of gradients, and nobody would notice.
    if torch.is_grad_enabled():
        raise RuntimeError("create_graph=True: the chunked head has no second derivatives, use the full logits")


def _balanced_chunk(hidden: Tensor, weight: Tensor, chunk: int | None) -> int:
    """Rows at a time, such that the last chunk is not a sliver that costs a pass over the whole weight."""
    elements = _CPU_CHUNK_ELEMENTS if hidden.device.type == "cpu" else _ACCELERATOR_CHUNK_ELEMENTS
    limit = max(1, elements // len(weight)) if chunk is None else chunk
    n_chunks = max(1, -(-len(hidden) // limit))
    return max(1, -(-len(hidden) // n_chunks))


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    """Type of the matrix products: `hidden`'s own, or under autocast bfloat16 where that is its type, else float32.

    float16 cannot hold most of a softmax over 50,000 ids, and what is formed in the forward pass no loss scaling can
    rescue.
    """
    device = hidden.device.type
    if hidden.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return hidden.dtype
    return torch.bfloat16 if torch.get_autocast_dtype(device) == torch.bfloat16 else torch.float32


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
