"""Log-probabilities of tokens, from logits or straight from hidden states.

The logits of one batch of GPT-2 are the largest tensor of its training step: B x T x 50257. `linear_cross_entropy` and
`linear_logprobs` multiply by the head a few rows at a time and hold one chunk of logits, or a few. Both compute the
softmax in float32 and the matrix products in autocast's type when that is bfloat16; gradients of the head's weight add
up in float32 either way.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Logits held at a time. CPU: 64 MiB of float32, where the products already run at full speed. An accelerator needs
# larger products.
_CPU_CHUNK_ELEMENTS = 2**24
_ACCELERATOR_CHUNK_ELEMENTS = 2**27
# Logits of a block that the softmax walks over several times: 1 MiB, what a core's own cache holds.
_CPU_BLOCK_ELEMENTS = 2**18
# Chunks that `linear_logprobs` keeps for the backward pass: 256 MiB of float32 on a CPU, on an accelerator 1 GiB of
# bfloat16; a fraction of a decoder's activations.
_KEPT_CHUNKS = 4


def aligned(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "R C"]:
    """Room for a matrix whose rows begin at multiples of 64 numbers, however many columns it has. A product into rows
    of 50,257, GPT-2's vocabulary, or out of them takes up to half as long again.
    """
    return torch.empty(rows, -(-columns // 64) * 64, dtype=dtype, device=device)[:, :columns]


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
    wanted, dtype = _wanted(hidden, weight), _compute_dtype(hidden)
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
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """`token_logprobs` and `entropy` of softmax(hidden · weightᵀ / temperature), in float32 nats, without the logits.

    ∂log π(a)/∂z = onehot(a) - π

    Every token has a gradient of its own that is not known before backward, so the forward pass keeps the softmax, up
    to a bound; backward computes what is beyond it again, with the same numbers. Without gradients nothing is kept. The
    entropy is a statistic, without gradient. `chunk`: as in `linear_cross_entropy`. Second derivatives raise.
    """
    settings = (temperature, chunk, _compute_dtype(hidden), _wanted(hidden, weight))
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
        for rows in head.parts:
            slopes = head.logits(rows)
            logprobs, totals = _slopes_(slopes, labels[rows])
            loss -= (by_row[rows] * logprobs).sum()
            head.backward_(rows, slopes, by_row[rows] / totals)
        ctx.save_for_backward(head.grad_hidden, head.grad_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivatives()
        # In place, as a second gradient of the weight is as large as the embedding.
        scale = torch.Tensor.mul if _walked_again() else torch.Tensor.mul_
        hidden, weight = (None if grad is None else scale(grad, grad_loss) for grad in ctx.saved_tensors)
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
        wanted: tuple[bool, bool],
    ) -> tuple[Tensor, Tensor]:
        ctx.settings = (chunk, dtype, temperature)
        head = _ChunkedHead(hidden, weight, (False, False), *ctx.settings)
        logprobs, entropies, totals = (torch.empty_like(tokens, dtype=head.wide) for _ in range(3))
        kept: list[Tensor | None] = []
        room = head.room if any(wanted) else 0
        for rows in head.parts:
            keep = room >= len(weight) * (rows.stop - rows.start)
            room -= len(weight) * (rows.stop - rows.start)
            slopes = head.logits(rows, fresh=keep)
            logprobs[rows], totals[rows] = _slopes_(slopes, tokens[rows], entropies[rows])
            kept.append(slopes.to(dtype) if keep else None)
        ctx.save_for_backward(hidden, weight, tokens, totals, *kept)
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, grad_logprobs: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivatives()
        hidden, weight, tokens, totals, *kept = ctx.saved_tensors
        head = _ChunkedHead(hidden, weight, ctx.needs_input_grad[:2], *ctx.settings)
        scale = -grad_logprobs / (totals * head.temperature)
        for rows, slopes in zip(head.parts, kept, strict=True):
            if slopes is None:
                slopes = head.logits(rows)
                _slopes_(slopes, tokens[rows])
            head.backward_(rows, slopes, scale[rows])
        return head.grad_hidden, head.grad_weight, None, None, None, None, None


def _slopes_(
    logits: Float[Tensor, "N V"], tokens: Int[Tensor, "N"], entropies: Float[Tensor, "N"] | None = None
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """Turn logits z, in place, into s (π - onehot(token)), the gradient of -log π(token) but for the factor of the row:
    s = Σᵥ exp(zᵥ - max z). Returns the log-probabilities and s; fills `entropies`, where given.

    A row's passes over V follow one another while it is in the processor's cache: from memory they cost four times as
    much, which is as much as a product.
    """
    logprobs, totals = (torch.empty_like(tokens, dtype=logits.dtype) for _ in range(2))
    size = max(1, _CPU_BLOCK_ELEMENTS // logits.shape[1]) if logits.device.type == "cpu" else max(1, len(logits))
    shifted = None if entropies is None else torch.empty_like(logits[:size])
    for start in range(0, len(logits), size):
        block, token = logits[start : start + size], tokens[start : start + size, None]
        largest, target = block.amax(1, keepdim=True), block.gather(1, token)
        below = torch.sub(block, largest, out=block if shifted is None else shifted[: len(block)])
        total = torch.exp(below, out=block).sum(1, keepdim=True)
        normaliser = largest + total.log()
        logprobs[start : start + size], totals[start : start + size] = (target - normaliser)[:, 0], total[:, 0]
        if entropies is not None:
            mean = torch.linalg.vecdot(block, below) / total[:, 0]
            entropies[start : start + size] = total[:, 0].log() - mean
        block.scatter_add_(1, token, -total)
    return logprobs, totals


class _ChunkedHead:
    """hidden · weightᵀ / temperature, one part of the rows at a time, and the gradients that its parts add up to."""

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
        starts = range(0, max(1, len(hidden)), self.chunk)
        self.parts = [slice(start, min(start + self.chunk, len(hidden))) for start in starts]
        self.room = _KEPT_CHUNKS * _chunk_elements(hidden.device)
        self._buffer: Tensor | None = None
        self.grad_hidden = torch.empty_like(hidden, dtype=self.wide) if wanted[0] else None
        self.grad_weight = torch.empty_like(weight, dtype=self.wide) if wanted[1] else None

    def logits(self, rows: slice, fresh: bool = False) -> Tensor:
        """Of these rows; valid until the next call, or `fresh`: for good."""
        count = rows.stop - rows.start
        if fresh and self.hidden.dtype == self.wide:
            out = self._empty(count)
        else:
            # One buffer throughout: fresh memory costs the operating system more than the softmax costs us.
            self._buffer = self._empty(self.chunk) if self._buffer is None else self._buffer
            out = self._buffer[:count]
        if self.hidden.dtype == self.wide:
            torch.mm(self.hidden[rows], self.weight.T, out=out)
        else:
            out.copy_(self.hidden[rows] @ self.weight.T)
        return out if self.temperature == 1 else out.div_(self.temperature)

    def _empty(self, rows: int) -> Tensor:
        return aligned(rows, len(self.weight), self.wide, self.hidden.device)

    def backward_(self, rows: slice, slopes: Tensor, scale: Float[Tensor, "N"]) -> None:
        """Form these rows' share of the gradients that are wanted, as if the temperature were 1: that of the logits is
        scale · slopes. Scaled are the narrow sides of the products, never slopes themselves, which are as wide as V.
        """
        slopes, column = slopes.to(self.hidden.dtype), scale[:, None]
        if self.grad_hidden is not None:
            _add_product_(self.grad_hidden[rows], slopes, self.weight, first=True)
            self.grad_hidden[rows] *= column
        if self.grad_weight is not None:
            scaled = (self.hidden[rows] * column).to(self.hidden.dtype)
            _add_product_(self.grad_weight, slopes.T, scaled, first=rows.start == 0)


def _add_product_(total: Tensor, left: Tensor, right: Tensor, first: bool) -> None:
    """total += left @ right, or the product alone where it is the `first`; rounded to the operands' type only where
    total's is wider.
    """
    if left.dtype == total.dtype:
        total.addmm_(left, right, beta=0.0 if first else 1.0)
    elif first:
        total.copy_(left @ right)
    else:
        total.add_(left @ right)


def _wanted(hidden: Tensor, weight: Tensor) -> tuple[bool, bool]:
    # Under no_grad a tensor still says requires_grad, and a Function still sees it.
    return (torch.is_grad_enabled() and hidden.requires_grad, torch.is_grad_enabled() and weight.requires_grad)


def _refuse_second_derivatives() -> None:
    # autograd's own once_differentiable would let constants through in place of gradients, and nobody would notice.
    if torch.is_grad_enabled():
        raise RuntimeError("create_graph=True: the chunked head has no second derivatives, use the full logits")


def _walked_again() -> bool:
    """Whether the graph that is walked is retained; where torch does not tell, it may be."""
    told = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return told is None or bool(told())


def _balanced_chunk(hidden: Tensor, weight: Tensor, chunk: int | None) -> int:
    """Rows at a time, such that the last chunk is not a sliver that costs a pass over the whole weight."""
    limit = max(1, _chunk_elements(hidden.device) // len(weight)) if chunk is None else chunk
    n_chunks = max(1, -(-len(hidden) // limit))
    return max(1, -(-len(hidden) // n_chunks))


def _chunk_elements(device: torch.device) -> int:
    return _CPU_CHUNK_ELEMENTS if device.type == "cpu" else _ACCELERATOR_CHUNK_ELEMENTS


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
