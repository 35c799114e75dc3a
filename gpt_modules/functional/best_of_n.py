"""Best-of-n: the policy that draws n answers and gives the one whose score is highest (Nakano et al. 2021, WebGPT)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def best_of_n_kl(n: int) -> float:
    """KL of the best of n answers to the policy that drew them, in nats a sequence:

    KL = log n - (n - 1) / n

    Exact where no two answers score the same, whatever the scores; else an upper bound (Beirami et al. 2024). Source:
    Stiennon et al. 2020, appendix G.3. Raises ValueError for n below 1.
    """
    if n < 1:
        raise ValueError(f"n: found {n}, expected 1 or more")
    return math.log(n) - (n - 1) / n


def best_of_n_mean(scores: Float[Tensor, "*P N"], values: Float[Tensor, "*P N"], n: int) -> Float[Tensor, "*P"]:
    """Mean value of the answer with the highest score among n, from N ≥ n answers to each prompt: the mean over all
    subsets of n of them, so unbiased, and with less variance than the best of n fresh ones.

    Σᵢ valueᵢ (C(i, n) - C(i - 1, n)) / C(N, n),   answers in ascending order of their scores, i = 1 … N

    Of equal scores each is the best equally often. `scores` is what chooses (a proxy), `values` what is then measured
    (the proxy again, or a gold reward). float64. Source: Nakano et al. 2021, appendix I. Raises ValueError for an n
    that is not 1 to N, or for a score that is no number.
    """
    if not 1 <= n <= scores.shape[-1]:
        raise ValueError(f"n: found {n}, expected 1 to the {scores.shape[-1]} answers of a prompt")
    if bool(scores.isnan().any()):
        raise ValueError("scores: found NaN, expected numbers")
    ordered, scores = scores.sort().values.contiguous(), scores.contiguous()
    below = torch.searchsorted(ordered, scores)
    up_to = torch.searchsorted(ordered, scores, right=True)  # of equal scores: the last one's place
    count = scores.shape[-1]
    subsets = [math.comb(i, n) / math.comb(count, n) for i in range(count + 1)]
    within = torch.tensor(subsets, dtype=torch.float64, device=scores.device)  # of the subsets, those in the lowest i
    weights = (within[up_to] - within[below]) / (up_to - below)
    return (weights * values).sum(-1)
