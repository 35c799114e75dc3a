"""Which estimator says how much better an answer was than expected, and what a recipe may say beside it."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gpt_modules.errors import UserError
from gpt_modules.functional import group_relative_advantages, leave_one_out_advantages
from gpt_modules.training.hyperparameters import expect_idle, plain

Estimator = Literal["gae", "rloo", "grpo"]
# What a critic learns by and what is estimated with it: without one, nothing follows them.
_OF_A_CRITIC = ("gamma", "lam", "whiten_rewards", "whiten_over", "clip", "critic")
_OF_THE_POLICY = ("clip.ratio", "clip.ratio_high")


@dataclass(frozen=True)
class EstimatorConfig:
    """How scores become advantages. Without a critic, an answer is measured by the other answers to its prompt: the
    data's `answers` says how many there are.

    Args:
        name: `gae`, by a critic (Schulman et al. 2016); `rloo`, by the mean of the other answers (Ahmadian et al.
            2024); `grpo`, by the mean and the deviation of all of them (Shao et al. 2024).
        divide_by_std: of GRPO, as published; false is Dr. GRPO's (Liu et al. 2025).
        mean_over: of GRPO's loss: `answers`, as published, where a token of a long answer weighs less, or `tokens`, as
            DAPO has it (Yu et al. 2025, eq. 12) and as the loss of the others is.
    """

    name: Estimator = "gae"
    divide_by_std: bool = True
    mean_over: Literal["answers", "tokens"] = "answers"

    @property
    def has_critic(self) -> bool:
        """Whether a critic is built, trained and exported."""
        return self.name == "gae"

    @property
    def averages_answers(self) -> bool:
        """Whether the loss is a mean over answers of each one's own mean."""
        return self.name == "grpo" and self.mean_over == "answers"

    def idle(self) -> dict[str, str]:
        """The variants of another estimator."""
        if self.name == "grpo":
            return {}
        return dict.fromkeys(("divide_by_std", "mean_over"), f"estimator.name is {self.name}, and they are grpo's")

    def refuse_of_a_critic(self, given: Mapping[str, Any], owner: Callable[..., Any]) -> None:
        """Refuse what has an effect by a critic alone, where there is none.

        Args:
            given: the arguments of `owner`.
            owner: whose defaults are nobody's wish.

        Raises:
            UserError: an argument is another.
        """
        if self.has_critic:
            return
        reason = f"estimator.name is {self.name}, which has no critic"
        parameters = inspect.signature(owner).parameters
        usual = _fields({name: parameters[name].default for name in _OF_A_CRITIC})
        for field, value in _fields({name: given[name] for name in _OF_A_CRITIC}).items():
            if field not in _OF_THE_POLICY:
                expect_idle(field, value, [usual[field]], reason)

    def expect_answers(self, answers: int) -> None:
        """Raises:
        UserError: so many answers to a prompt have nothing to be measured by.
        """
        if not self.has_critic and answers < 2:
            raise UserError(
                f"data.answers: found {answers}, expected at least 2 with model.estimator.name: "
                f"{self.name}, by which an answer is measured by the others to its prompt"
            )


def group_advantages(
    rewards: Float[Tensor, "B R"], mask: Bool[Tensor, "B R"], config: EstimatorConfig, answers: int
) -> Float[Tensor, "B R"]:
    """The advantage of each answer, the same on all its tokens, 0 outside the mask; without gradient.

    Args:
        rewards: of the tokens: the answer's is their sum.
        answers: to a prompt, which stand one after the other.
    """
    totals = torch.where(mask, rewards, 0.0).sum(1).view(-1, answers)
    if config.name == "rloo":
        of_answers = leave_one_out_advantages(totals)
    else:
        of_answers = group_relative_advantages(totals, config.divide_by_std)
    return torch.where(mask, of_answers.view(-1, 1), 0.0)


def _fields(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as plain data, those of a group each by itself."""
    fields: dict[str, Any] = {}
    for name, value in arguments.items():
        group = plain(value)
        fields |= {f"{name}.{key}": one for key, one in group.items()} if isinstance(group, dict) else {name: group}
    return fields
