"""How much better an action was than the critic expected."""

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
