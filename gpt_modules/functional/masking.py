"""Statistics over the positions that count.

A mask is bool and True means "this position counts". What lies outside it is selected away, never multiplied by zero:
padding may hold NaN or infinity, and NaN times zero is NaN.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def masked_mean(
    values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], dim: int | None = None
) -> Float[Tensor, "..."]:
    """Mean of the counted values, over everything or along `dim`; 0 where nothing counts.

    mean = Σᵢ mᵢ xᵢ / max(1, Σᵢ mᵢ)
    """
    counted = torch.where(mask, values, 0.0)
    total, count = (counted.sum(), mask.sum()) if dim is None else (counted.sum(dim), mask.sum(dim))
    return total / count.clamp(min=1)


def masked_whiten(
    values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], shift_mean: bool = True, eps: float = 1e-8
) -> Float[Tensor, "*shape"]:
    """Scale the counted values to variance 1 and, with `shift_mean`, shift them to mean 0; the rest becomes 0.

    x ← (x - μ) / √(σ² + ε), plus μ again when `shift_mean` is False; σ² is the biased variance of the counted values.

    Advantages lose their mean. Rewards keep it (`shift_mean=False`): a constant reward per token is a length bonus, and
    removing it would change the task. Source: Ziegler et al. 2019, "Fine-Tuning Language Models from Human
    Preferences", `whiten` of its code.
    """
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean).square(), mask)
    whitened = (values - mean) * torch.rsqrt(variance + eps)
    return torch.where(mask, whitened if shift_mean else whitened + mean, 0.0)


def token_mean(
    values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], normaliser: float | Tensor | None = None
) -> Float[Tensor, ""]:
    """Mean of the counted values, or their sum by a `normaliser`: the share of a part in the mean over a whole.

    A mean of means is not the mean over all tokens. Given the number of counted tokens of the *whole* batch, each part
    of it (a micro-batch, a rank) returns its share, and the shares add up to the mean exactly.
    """
    if normaliser is None:
        return masked_mean(values, mask)
    return torch.where(mask, values, 0.0).sum() / normaliser


def sequence_mean(
    values: Float[Tensor, "B R"], mask: Bool[Tensor, "B R"], normaliser: float | Tensor | None = None
) -> Float[Tensor, ""]:
    """Mean over rows of each row's mean of its counted values: a long row weighs as much as a short one, and a token of
    it less.

    mean = 1/B Σᵢ 1/|oᵢ| Σₜ xᵢₜ;   a row where nothing counts adds 0.

    Given the number of rows of the *whole* batch as `normaliser`, each part of it returns its share, as in
    `token_mean`. Source: Shao et al. 2024, "DeepSeekMath", eq. 3.
    """
    return masked_mean(values, mask, dim=1).sum() / (len(values) if normaliser is None else normaliser)
