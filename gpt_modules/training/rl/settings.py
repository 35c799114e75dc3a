"""What a recipe says of reinforcement learning: penalty, trust region, sampling, and how scores become advantages.

Each refuses, in one line that names the field, a value that makes no sense.
"""

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from gpt_modules.backbone import LoRAConfig
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import expect
from gpt_modules.functional import adaptive_kl_coef
from gpt_modules.training.hyperparameters import expect_idle, expect_number, typed
from gpt_modules.training.rl.estimators import EstimatorConfig
from gpt_modules.training.rl.scores import Moments, ScoresConfig


@dataclass(frozen=True)
class KLConfig:
    """The penalty for leaving the reference.

    Args:
        coef: beta, reward per nat; InstructGPT 0.02, Stiennon et al. 0.05, Ziegler et al. 0.15 to start from.
        target: nats a sequence that an adaptive coefficient steers to (Ziegler et al. 2019, section 2.2: 6); None
            keeps it fixed.
        horizon: episodes over which the adaptive coefficient reacts; a rollout of more of them reacts as one of these.
        loss: the penalty is no part of the reward but a term of the loss: `k3`, GRPO's own (Shao et al. 2024, eq. 4),
            or `k2`, whose gradient is the KL's. It weighs a mean over tokens, where the reward's is a sum over them.
    """

    coef: float = 0.05
    target: float | None = None
    horizon: float = 10_000.0
    loss: Literal["k2", "k3"] | None = None

    def __post_init__(self) -> None:
        expect_number("kl.coef", self.coef, "[0, inf)")
        expect_number("kl.horizon", self.horizon, "(0, inf)")
        if self.target is not None:
            expect_number("kl.target", self.target, "(0, inf)")
            expect(self.coef > 0, "kl.coef", self.coef, "more than 0 with a target: a factor moves it")
            expect(self.loss is None, "kl.target", self.target, "none beside kl.loss: it steers the reward's penalty")

    def adapted(self, coef: float, kl: float, episodes: int) -> float:
        """The coefficient after a rollout of so many episodes at `kl` nats each: the same where there is no target."""
        if self.target is None:
            return coef
        return adaptive_kl_coef(coef, kl, self.target, self.horizon, episodes)

    def idle(self) -> dict[str, str]:
        """How fast a coefficient adapts that does not, and where a penalty stands that is none."""
        idle = {} if self.target is not None else {"horizon": "there is no target, so the coefficient is fixed"}
        return idle if self.coef else idle | {"loss": "kl.coef is 0, so there is no penalty"}


@dataclass(frozen=True)
class ClipConfig:
    """PPO's trust region.

    Args:
        ratio: epsilon of the policy's clipped objective.
        ratio_high: how far a ratio may rise above 1, where that is not as far as it may fall (Yu et al. 2025, DAPO:
            0.28 beside 0.2); None: ratio.
        value: how far the critic may move from its old value before the loss stops pulling it on.
        value_coef: weight of the value loss in the sum.
    """

    ratio: float = 0.2
    value: float = 0.2
    value_coef: float = 0.1
    ratio_high: float | None = None

    def __post_init__(self) -> None:
        expect_number("clip.ratio", self.ratio, "(0, 1)")
        if self.ratio_high is not None:
            expect_number("clip.ratio_high", self.ratio_high, "(0, inf)")
        expect_number("clip.value", self.value, "(0, inf)")
        expect_number("clip.value_coef", self.value_coef, "[0, inf)")

    def idle(self) -> dict[str, str]:
        """The region of a critic that does not learn."""
        return {} if self.value_coef else {"value": "value_coef is 0, so the critic does not learn"}


def expect_no_dropout(field: str, lora: LoRAConfig | None) -> None:
    """Raises `UserError` for updates with dropout: the first ratio would not be 1, nor a value the one before."""
    if lora is not None:
        expect(lora.dropout == 0, f"{field}.dropout", lora.dropout, "0: reinforcement learning has no dropout")


@dataclass(frozen=True)
class CriticConfig:
    """The value function.

    Args:
        init_from: folder it begins from; None: the first reward model, or the policy's with a head of zeros. With a
            shared trunk the head alone is read, of a folder whose trunk is the policy's; None: a head of zeros.
        lr: its peak rate; None: the policy's. InstructGPT: 9e-6 (Ouyang et al. 2022, appendix C.4). One that is to
            stay as it is has `clip.value_coef` 0.
        shared_trunk: a head on the policy's own trunk, which the value loss moves too (Ziegler et al. 2019, code):
            one forward pass in place of two and about half the memory; `lr` and `max_norm` are then the head's.
        warmup: iterations in which the critic alone learns, fewer than the run has. The policy keeps its weights to the
            bit, and `schedule` counts from its first step for it, from the run's for the critic; an adaptive KL
            coefficient waits with it.
        max_norm: largest norm of its gradient, clipped apart from the policy's; None: both are clipped as one by
            `trainer.gradient_clip_val`, and a large gradient of the critic shrinks the policy's.
        lora: low-rank updates learn in place of its trunk, beside its head; a reward model of the same folder shares
            that trunk.
    """

    init_from: str | None = None
    lr: float | None = None
    shared_trunk: bool = False
    warmup: int = 0
    max_norm: float | None = None
    lora: LoRAConfig | None = None

    def __post_init__(self) -> None:
        if self.lora is not None:
            object.__setattr__(self, "lora", typed(LoRAConfig, self.lora))
        expect_no_dropout("critic.lora", self.lora)
        if self.shared_trunk:
            expect_idle("critic.lora", self.lora, [None], "a shared trunk has the policy's `lora`")
        if self.lr is not None:
            expect_number("critic.lr", self.lr, "(0, inf)")
        expect_number("critic.warmup", self.warmup, "[0, inf)", whole=True)
        if self.max_norm is not None:
            expect_number("critic.max_norm", self.max_norm, "(0, inf)")


@dataclass(frozen=True)
class EMAConfig:
    """An average of the policy's weights (Ouyang et al. 2022, appendix C.4).

    Args:
        decay: of the average at each optimizer step; 0.992 there, which does not say of what step.
        export: `beside` writes it to `export-ema` and logs what it says as `val/ema/...`; `instead` writes it to
            `export`, in place of the last weights, and `val/...` is of it.
    """

    decay: float = 0.992
    export: Literal["beside", "instead"] = "beside"

    def __post_init__(self) -> None:
        expect_number("ema.decay", self.decay, "[0, 1)")


@dataclass(frozen=True)
class EarlyStop:
    """How far a minibatch may find the policy from the one that sampled it. Beyond, neither its step nor the rest of
    the iteration's are taken.

    Args:
        kl: largest `policy/approx_kl`, nats a token; None: no bound.
        ratio: largest mean ratio, `policy/ratio`; None: no bound.
    """

    kl: float | None = None
    ratio: float | None = None

    def __post_init__(self) -> None:
        if self.kl is not None:
            expect_number("early_stop.kl", self.kl, "(0, inf)")
        if self.ratio is not None:
            expect_number("early_stop.ratio", self.ratio, "(1, inf)")


@dataclass(frozen=True)
class PtxConfig:
    """Pretraining text beside the experience of each optimizer step, PPO-ptx; the text is the data's `pretraining`.

    Args:
        coef: weight of the mean cross-entropy, nats a pretraining token, beside the policy's loss, a mean over response
            tokens of whitened advantages times ratios. InstructGPT's gamma is 27.8 on a scale that it does not tell:
            equation 2 has log-probabilities of whole texts and scores that are not whitened. 0: the text is measured,
            not learnt.
        windows: of pretraining text for every episode of a step; InstructGPT 8.
    """

    coef: float = 0.0
    windows: int = 8

    def __post_init__(self) -> None:
        expect_number("ptx.coef", self.coef, "[0, inf)")
        expect_number("ptx.windows", self.windows, "[1, inf)", whole=True)

    def idle(self) -> dict[str, str]:
        """How much text nobody learns from."""
        return {} if self.coef else {"windows": "ptx.coef is 0, so no text is learnt"}


class Sampling(NamedTuple):
    """How responses are drawn.

    max_new_tokens: of the longest.
    temperature: divides the logits wherever a log-probability is taken.
    ends: tokens each of which ends a response.
    truncate_after: such a token among the first so many of a response ends nothing.
    draw: temperature of drawing, where it is another; 0 takes the likeliest token.
    """

    max_new_tokens: int
    temperature: float
    ends: tuple[int, ...]
    truncate_after: int = 0
    draw: float | None = None
    cache_bytes: float = math.inf


@dataclass(frozen=True)
class SamplingConfig:
    """Where a response ends, and how held-out ones are drawn.

    Ziegler et al. 2019 (code) sample a fixed length and cut it at the first stop token at or after `truncate_after`.
    Drawing stops there instead, which gives the same tokens, and nothing after them is ever read.

    Args:
        stop: what ends a response, in place of the end-of-text token and of what the policy's folder ends answers with
            (its chat template, its generation_config.json): texts of one token each, or token ids. The end-of-text
            token itself is named as its tokenizer does, such as "<|endoftext|>"; where it is not among them it is a
            token like others.
        truncate_after: tokens of a response in which nothing ends it. Ziegler et al.: 16 of 24.
        eval_temperature: of the responses of validation, test, prediction and sample table; 0 takes the likeliest
            token, and `val/kl` is then of that text; None: as in training. Their log-probabilities and KL stay those of
            the policy that is trained, at `temperature`: of answers drawn otherwise the KL is a mean log-ratio, no
            estimate of the divergence, and neither it nor `val/reward` and the figure of score against KL compare with
            `objective/kl`, with `kl.target`, or with a run that validates at another temperature.
    """

    stop: list[str | int] | None = None
    truncate_after: int = 0
    eval_temperature: float | None = None

    def __post_init__(self) -> None:
        if self.stop is not None:
            expect(len(self.stop) > 0, "sampling.stop", self.stop, "at least one text or token, or null")
        expect_number("sampling.truncate_after", self.truncate_after, "[0, inf)", whole=True)
        if self.eval_temperature is not None:
            expect_number("sampling.eval_temperature", self.eval_temperature, "[0, inf)")

    @property
    def told(self) -> str | None:
        """Where answers end, for a model card; None: where the policy's folder says. `generation_config.json` can name
        the tokens, and not that the first of them end nothing.
        """
        if self.stop is None and not self.truncate_after:
            return None
        named = "the usual tokens" if self.stop is None else ", ".join(f"`{stop!r}`" for stop in self.stop)
        first = self.truncate_after
        return f"at {named}" + (f"; not within the first {first} tokens, which no file here says" if first else "")

    def ends(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """The tokens that end a response.

        Raises:
            UserError: a text is not one token, or a number none.
        """
        return tokenizer.end_ids if self.stop is None else tuple(_token(stop, tokenizer) for stop in self.stop)


def _token(stop: str | int, tokenizer: Tokenizer) -> int:
    field, of = "model.sampling.stop", "of the policy's tokenizer"
    if isinstance(stop, int) and not isinstance(stop, bool):
        expect(0 <= stop < tokenizer.vocab_size, field, stop, f"a token {of}, 0 to {tokenizer.vocab_size - 1}")
        return stop
    if stop == tokenizer.eos:
        return tokenizer.eos_id
    ids = tokenizer.within.encode(stop) if isinstance(stop, str) else []
    expect(len(ids) == 1, field, stop, f"a text of one token {of}, not of {len(ids)}")
    return ids[0]


@dataclass(frozen=True)
class Shaping:
    """How scores become advantages.

    Args:
        gamma: discount. InstructGPT: none.
        lam: lambda of GAE. InstructGPT does not state it; Stiennon et al. use 0.95.
        missing_eos_score: replaces the score of a response that did not end; None leaves it.
        whiten_rewards: scale rewards to unit variance, keeping their mean (Ziegler et al.'s code).
        whiten_advantages: to mean 0 and variance 1, where a critic makes them.
        whiten_over: what both are over: the `rollout`, or each `minibatch` by itself, as Ziegler et al.'s code has it.
        scores: what is optimised of them.
        moments: by which they are normalised.
        estimator: what makes advantages.
    """

    gamma: float = 1.0
    lam: float = 0.95
    missing_eos_score: float | None = -1.0
    whiten_rewards: bool = False
    whiten_advantages: bool = True
    whiten_over: Literal["rollout", "minibatch"] = "rollout"
    scores: ScoresConfig = field(default_factory=ScoresConfig)
    moments: Moments = field(default_factory=Moments)
    estimator: EstimatorConfig = field(default_factory=EstimatorConfig)

    def __post_init__(self) -> None:
        expect_number("gamma", self.gamma, "[0, 1]")
        expect_number("lam", self.lam, "[0, 1]")
        if self.missing_eos_score is not None:
            expect_number("missing_eos_score", self.missing_eos_score, "(-inf, inf)")
