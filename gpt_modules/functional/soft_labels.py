"""Scores as distributions over whole numbers, and the weights of a mean over rows: what labelled tasks need."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def soft_targets(scores: Float[Tensor, "B"], low: int, high: int) -> Float[Tensor, "B L"]:
    """Each score in [low, high] as a distribution over the L = high - low + 1 whole scores, whose mean it is.

    p_i = y - ⌊y⌋ for i = ⌊y⌋ + 1;   p_i = ⌊y⌋ - y + 1 for i = ⌊y⌋;   else 0

    NaN, which says that there is no score, gives zeros: they add nothing to a cross-entropy and to its gradient.
    Source: Tai et al. 2015, "Improved Semantic Representations From Tree-Structured Long Short-Term Memory Networks",
    section 4.2.
    """
    # Both lines of the equation at once: what is left of 1 at the distance of each whole score.
    distance = (scores.unsqueeze(1) - _levels(scores, low, high - low + 1)).abs()
    return (1.0 - distance).clamp_min(0.0).nan_to_num(0.0)


def expected_score(logits: Float[Tensor, "B L"], low: int) -> Float[Tensor, "B"]:
    """Mean, in float32, of softmax(logits) over the whole scores low, low + 1, ...: the score that is predicted.

    ŷ = Σᵢ i πᵢ. Source: as of `soft_targets`.
    """
    probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1)
    return probs @ _levels(probs, low, logits.shape[1])


def row_mean_weights(mask: Bool[Tensor, "N T"]) -> Float[Tensor, "N T"]:
    """Weights whose sum over a loss is its mean over each row's counted tokens, then over the rows that have any.

    aₙₜ = mask / (tokens of row n · rows that have any);   0 throughout where nothing counts

    So a long text weighs as much as a short one: the auxiliary language-model loss of the original code of Radford et
    al. 2018.
    """
    tokens = mask.sum(1, keepdim=True)
    rows = (tokens > 0).sum()
    return mask / (tokens * rows).clamp_min(1)


def _levels(like: Tensor, low: int, count: int) -> Tensor:
    return torch.arange(low, low + count, dtype=like.dtype, device=like.device)
