"""What a recipe says of reinforcement learning: penalty, trust region, sampling, and how scores become advantages.

Each refuses, in one line that names the field, a value that makes no sense.
"""

from dataclasses import dataclass
from typing import NamedTuple

from gpt_modules.errors import expect
from gpt_modules.training.hyperparameters import expect_number


@dataclass(frozen=True)
class KLConfig:
    """The penalty for leaving the reference.

    Args:
        coef: beta, reward per nat; InstructGPT 0.02, Stiennon et al. 0.05, Ziegler et al. 0.15 to start from.
        target: nats a sequence that an adaptive coefficient steers to (Ziegler et al. 2019, section 2.2: 6); None
            keeps it fixed.
        horizon: episodes over which the adaptive coefficient reacts; a rollout of more of them reacts as one of these.
    """

    coef: float = 0.05
    target: float | None = None
    horizon: float = 10_000

    def __post_init__(self) -> None:
        expect_number("kl.coef", self.coef, "[0, inf)")
        expect_number("kl.horizon", self.horizon, "(0, inf)")
        if self.target is not None:
            expect_number("kl.target", self.target, "(0, inf)")
            expect(self.coef > 0, "kl.coef", self.coef, "more than 0 with a target: a factor moves it")

    def idle(self) -> dict[str, str]:
        """How fast a coefficient adapts that does not."""
        return {} if self.target is not None else {"horizon": "there is no target, so the coefficient is fixed"}


@dataclass(frozen=True)
class ClipConfig:
    """PPO's trust region.

    Args:
        ratio: epsilon of the policy's clipped objective.
        value: how far the critic may move from its old value before the loss stops pulling it on.
        value_coef: weight of the value loss in the sum.
    """

    ratio: float = 0.2
    value: float = 0.2
    value_coef: float = 0.1

    def __post_init__(self) -> None:
        expect_number("clip.ratio", self.ratio, "(0, 1)")
        expect_number("clip.value", self.value, "(0, inf]")
        expect_number("clip.value_coef", self.value_coef, "[0, inf)")

    def idle(self) -> dict[str, str]:
        """The region of a critic that does not learn."""
        return {} if self.value_coef else {"value": "value_coef is 0, so the critic does not learn"}


@dataclass(frozen=True)
class CriticConfig:
    """The value function.

    Args:
        init_from: folder it begins from; None: the first reward model, or the policy's with a head of zeros.
        lr: its peak rate; None: the policy's. InstructGPT: 9e-6 (Ouyang et al. 2022, appendix C.4).
    """

    init_from: str | None = None
    lr: float | None = None

    def __post_init__(self) -> None:
        if self.lr is not None:
            expect_number("critic.lr", self.lr, "[0, inf)")


class Sampling(NamedTuple):
    """How responses are drawn; the same temperature divides the logits wherever a log-probability is taken."""

    max_new_tokens: int
    temperature: float
    eos_id: int


@dataclass(frozen=True)
class Shaping:
    """How scores become advantages.

    Args:
        gamma: discount. InstructGPT: none.
        lam: lambda of GAE. InstructGPT does not state it; Stiennon et al. use 0.95.
        missing_eos_score: replaces the score of a response that did not end; None leaves it.
        whiten_rewards: scale rewards to unit variance, keeping their mean (Ziegler et al.'s code).
        whiten_advantages: to mean 0 and variance 1 over the iteration.
    """

    gamma: float = 1.0
    lam: float = 0.95
    missing_eos_score: float | None = -1.0
    whiten_rewards: bool = False
    whiten_advantages: bool = True

    def __post_init__(self) -> None:
        expect_number("gamma", self.gamma, "[0, 1]")
        expect_number("lam", self.lam, "[0, 1]")
        if self.missing_eos_score is not None:
            expect_number("missing_eos_score", self.missing_eos_score, "(-inf, inf)")
