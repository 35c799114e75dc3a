"""AdamW whose epsilon stands where TensorFlow's Adam has it."""

import math
from collections.abc import Callable
from typing import Any

import torch


class EpsilonHatAdamW(torch.optim.AdamW):
    """AdamW with epsilon outside the bias correction, the epsilon-hat of Kingma and Ba 2015, end of section 2:

    θ ← θ - lr √(1 - β₂ᵗ) / (1 - β₁ᵗ) · m / (√v + ε̂)

    It is AdamW of the epsilon ε̂ / √(1 - β₂ᵗ), larger than ε̂ while t is small, so torch's fused step takes it as it is.
    TensorFlow's Adam is this one, and with it the codes of Ziegler et al. 2019; with torch's, the first updates there
    have 6.4 times the approximate KL (Huang et al. 2023, "The N Implementation Details of RLHF with PPO").

    t counts the steps in which a group has a gradient; the parameters of a group have one together or not at all.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._hats = [group["eps"] for group in self.param_groups]
        self._taken: list[int] | None = None  # by group; None: to be read from the state, which may lie on a device

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; the closure, which does the backward pass, runs first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._taken is None:
            self._taken = [self._steps_of(group) for group in self.param_groups]
        for index, group in enumerate(self.param_groups):
            self._taken[index] += any(parameter.grad is not None for parameter in group["params"])
            correction = 1.0 - group["betas"][1] ** max(1, self._taken[index])
            group["eps"] = self._hats[index] / math.sqrt(correction)
        super().step()
        return loss

    def _steps_of(self, group: dict[str, Any]) -> int:
        counts = [int(self.state[one]["step"]) for one in group["params"] if one in self.state]
        return max(counts, default=0)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it; steps are counted from there."""
        super().load_state_dict(state_dict)
        self._taken = None
