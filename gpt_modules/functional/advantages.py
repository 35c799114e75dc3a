"""How much better an action was than expected: by a critic, or by what else was answered to its prompt."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@torch.no_grad()
def generalized_advantage_estimation(
    rewards: Float[Tensor, "B R"],
    values: Float[Tensor, "B R"],
    mask: Bool[Tensor, "B R"],
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[Float[Tensor, "B R"], Float[Tensor, "B R"]]:
    """Advantages and returns of the counted response tokens; 0 elsewhere, and no gradient: both are targets.

    δₜ = rₜ + γ V(sₜ₊₁) - V(sₜ);   Âₜ = δₜ + γλ Âₜ₊₁;   Rₜ = Âₜ + V(sₜ)

    `values[:, t]` is the critic's estimate before token t was chosen. "t+1" is the next *counted* token: a masked cell
    hands the recursion through unchanged, so holes and padding, and whatever they contain, alter nothing. After the
    last counted token the value is 0.

    Source: Schulman et al. 2016, "High-Dimensional Continuous Control Using Generalized Advantage Estimation", eq.
    16.
    """
    advantages = torch.zeros_like(values)
    advantage = next_value = values.new_zeros(values.shape[0])
    for t in reversed(range(values.shape[1])):
        counts, value = mask[:, t], values[:, t]
        delta = rewards[:, t] + gamma * next_value - value
        advantage = torch.where(counts, delta + gamma * lam * advantage, advantage)
        next_value = torch.where(counts, value, next_value)
        advantages[:, t] = torch.where(counts, advantage, 0.0)
    return advantages, torch.where(mask, advantages + values, 0.0)


@torch.no_grad()
def leave_one_out_advantages(rewards: Float[Tensor, "G K"]) -> Float[Tensor, "G K"]:
    """RLOO: how much better each of K answers to a prompt is than the mean of the others; no gradient, K at least 2.

    Âᵢ = rᵢ - 1/(K-1) Σ_{j≠i} rⱼ

    The whole response is one action: rᵢ is its score with the penalty of all its tokens, and Âᵢ the advantage of each.
    A baseline that does not know rᵢ leaves the policy gradient unbiased. Where all rewards are equal, exactly 0.
    Source: Kool et al. 2019, "Buy 4 REINFORCE Samples, Get a Baseline for Free!"; Ahmadian et al. 2024, "Back to
    Basics", section 3.2.
    """
    return _group_deviations(rewards) * (rewards.shape[1] / (rewards.shape[1] - 1))


@torch.no_grad()
def group_relative_advantages(
    rewards: Float[Tensor, "G K"], divide_by_std: bool = True, eps: float = 1e-4
) -> Float[Tensor, "G K"]:
    """GRPO: each of K answers to a prompt against their mean, in their standard deviations; no gradient, K at least 2.

    Âᵢ = (rᵢ - mean(r)) / (std(r) + ε)

    The paper has neither ε nor says which deviation: this is the sample's (K-1), as in TRL and verl. Where all rewards
    are equal, exactly 0. Without `divide_by_std` a prompt on which the answers hardly differ weighs no more than others
    (Dr. GRPO). Source: Shao et al. 2024, "DeepSeekMath", section 4.1.2; Liu et al. 2025, "Understanding R1-Zero-Like
    Training", section 3.
    """
    deviations = _group_deviations(rewards)
    if not divide_by_std:
        return deviations
    return deviations / ((deviations.square().sum(1, keepdim=True) / (rewards.shape[1] - 1)).sqrt() + eps)


def _group_deviations(rewards: Float[Tensor, "G K"]) -> Float[Tensor, "G K"]:
    """From the row's mean. Counted from its first value, or the mean of equal numbers would be off by their rounding,
    which a division by their deviation makes large.
    """
    from_first = rewards - rewards[:, :1]
    return from_first - from_first.mean(1, keepdim=True)
