"""The settings of an inner loop, which parameters it moves and how far: what `functional.adaptation` calls rates."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor

from gpt_modules.errors import UserError
from gpt_modules.training.hyperparameters import expect_idle, expect_number

RateShape = Literal["fixed", "per_step", "per_element"]


@dataclass(frozen=True)
class InnerLoop:
    """How a task is adapted to: plain gradient descent on the whole support set.

    Args:
        steps: of gradient descent; 0 trains jointly on the queries of all tasks.
        lr: α, where learned rates begin.
        rates: `fixed`; `per_step`, learned for each tensor and step (MAML++, Antoniou et al. 2019, section 4); or
            `per_element`, learned for each number of each tensor (Meta-SGD, Li et al. 2017).
        adapts: patterns of the names of the parameters to adapt, such as ["head.*"] (ANIL, Raghu et al. 2020); left
            out: all. The head of a language model is its embedding, decoder.wte.weight, or lm_head.weight if untied.

    Raises `UserError`, one line naming the field.
    """

    steps: int = 1
    lr: float = 0.01
    rates: RateShape = "fixed"
    adapts: list[str] | None = None

    def __post_init__(self) -> None:
        expect_number("inner.steps", self.steps, "[0, inf)", whole=True)
        expect_number("inner.lr", self.lr, "(0, inf)")

    def idle(self) -> dict[str, str]:
        """Rates without a gradient; those of no step at all still begin whatever adapts the weights later."""
        return {} if self.steps else {"rates": "steps is 0, so nothing learns them"}

    def adapted(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters that move.

        Raises:
            UserError: a pattern of `adapts` is no parameter's name.
        """
        patterns = self.adapts or ["*"]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in parameters):
                names = ", ".join([*parameters][-3:])
                raise UserError(
                    f"inner: adapts: found {pattern!r}, which no parameter is called, expected such as {names}"
                )
        return {
            name: value for name, value in parameters.items() if any(fnmatchcase(name, pattern) for pattern in patterns)
        }

    def first_rates(self, parameters: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A rate (S, ...) for each that moves: as `stored` where that has the same form, else `lr` throughout.

        Raises:
            UserError: `lr` is given, and all are stored.
        """
        rates = {name: torch.full(self._shape(value), self.lr) for name, value in self.adapted(parameters).items()}
        kept = {
            name: stored[name] for name, rate in rates.items() if name in stored and stored[name].shape == rate.shape
        }
        if not self.learned:
            return rates
        if kept.keys() == rates.keys():
            expect_idle("inner.lr", self.lr, [InnerLoop.lr], "init_from brings rates of its own")
        return {**rates, **kept}

    @property
    def learned(self) -> bool:
        """Whether the outer loop learns the rates."""
        return self.rates != "fixed"

    def _shape(self, parameter: Tensor) -> tuple[int, ...]:
        if self.rates == "per_element":
            return (1, *parameter.shape)
        return (max(1, self.steps) if self.rates == "per_step" else 1,)
