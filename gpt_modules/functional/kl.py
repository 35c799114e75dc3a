"""The distance to the reference policy: its estimate, its place in the reward, and the controller of its weight."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# exp(20) is 5e8: far beyond any ratio worth reporting, and far below float32's overflow.
_LOG_RATIO_LIMIT = 20.0


def kl_estimate(
    logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"], kind: Literal["k1", "k2", "k3"] = "k1"
) -> Float[Tensor, "*shape"]:
    """Estimate of KL(π ‖ π_ref) in nats from each token sampled from π; with d = log π - log π_ref:

    k1 = d  (signed, unbiased);   k2 = d²/2  (biased, ≥ 0);   k3 = e⁻ᵈ - 1 + d  (unbiased, ≥ 0)

    As a term of the reward use k1. As a term of the *loss* only k2 has the KL's gradient. A sequence's KL is the sum
    over its tokens.

    Source: Schulman 2020, "Approximating KL Divergence" (joschu.net/blog/kl-approx.html). Raises ValueError for another
    kind.
    """
    difference = logprobs - ref_logprobs
    if kind == "k1":
        return difference
    if kind == "k2":
        return 0.5 * difference.square()
    if kind == "k3":
        return torch.expm1(-difference.clamp(min=-_LOG_RATIO_LIMIT)) + difference
    raise ValueError(f"kind: found {kind!r}, expected 'k1', 'k2' or 'k3'")


def kl_shaped_rewards(
    scores: Float[Tensor, "B"], kl: Float[Tensor, "B R"], mask: Bool[Tensor, "B R"], coef: float | Float[Tensor, ""]
) -> Float[Tensor, "B R"]:
    """Reward of each response token: the penalty on all, the score on the last counted one; 0 outside the mask.

    rₜ = -β klₜ + [t is the last counted token] · score

    A row in which nothing counts has nowhere to put its score and is all 0.
    Source: Ziegler et al. 2019, eq. 2; Ouyang et al. 2022 (InstructGPT), eq. 2.
    """
    counted_from_here = mask.flip(1).cumsum(1).flip(1)
    last = mask & (counted_from_here == 1)
    rewards = torch.where(mask, -coef * kl, 0.0)
    return torch.where(last, rewards + scores.unsqueeze(1), rewards)


def adaptive_kl_coef(coef: float, kl: float, target: float, horizon: float, n_episodes: int) -> float:
    """The KL weight β for the next iteration, from the KL that this one measured.

    e = clip(KL / target - 1, -0.2, 0.2);   β ← β (1 + e · min(1, n_episodes / horizon))

    `kl` is the sum over a sequence's tokens, averaged over sequences, and `target` is in the same unit; `horizon`
    counts episodes. Source: Ziegler et al. 2019, section 2.2, with K_β = n_episodes / horizon as in its code. K_β ends
    at 1, where a β changes by a fifth at most: beyond 5, a KL below its target would make it negative. To keep β fixed,
    do not call this.
    """
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return coef * (1.0 + error * min(1.0, n_episodes / horizon))
