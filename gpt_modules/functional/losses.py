"""Losses of the reward model, of DPO, the policy, the critic and of supervised sets, with the statistics that tell
whether they are healthy.

`normaliser`: as of `token_mean`. Losses and the detached statistics beside them are means over counted tokens; with the
number of counted tokens of the whole batch, the shares of its micro-batches (or ranks) add up to them exactly.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gpt_modules.functional.kl import kl_estimate
from gpt_modules.functional.masking import masked_mean, sequence_mean, token_mean

# exp(20) is 5e8: one broken token must not overflow the loss of a batch.
_LOG_RATIO_LIMIT = 20.0
IGNORED = -100  # a target that asks for nothing


class PolicyLoss(NamedTuple):
    """What `ppo_clip_loss` returns; scalars, all but `loss` detached."""

    loss: Float[Tensor, ""]
    approx_kl: Float[Tensor, ""]  # ½ E[(log π - log π_old)²], nats per token
    clip_fraction: Float[Tensor, ""]  # share of tokens whose clipped term is the larger loss: they get no gradient
    ratio_mean: Float[Tensor, ""]  # E[π / π_old]; 1 in expectation


class ValueLoss(NamedTuple):
    """What `clipped_value_loss` returns; scalars, `clip_fraction` detached."""

    loss: Float[Tensor, ""]
    clip_fraction: Float[Tensor, ""]


class PreferenceLosses(NamedTuple):
    """What `dpo_losses` returns; `rewards` detached."""

    losses: Float[Tensor, "P"]  # of each prompt, 0 where it has no untied pair
    counted: Bool[Tensor, "P"]  # whether it has one
    rewards: Float[Tensor, "P K"]  # implicit: their differences are log-odds of the preference


def pair_margins(
    scores: Float[Tensor, "P K"], ranks: Int[Tensor, "P K"], mask: Bool[Tensor, "P K"]
) -> tuple[Float[Tensor, "P K K"], Bool[Tensor, "P K K"]]:
    """Margin score_i - score_j of each pair (i, j) of a prompt's counted answers in which i is preferred, 0 for the
    others; and which pairs these are. A shape that depends on no number, so no device is waited for.

    `ranks`: lower is better, equal is a tie. `mask`: answers that exist. The accuracy of a reward model is the share of
    margins above 0.
    """
    counted = (ranks.unsqueeze(2) < ranks.unsqueeze(1)) & mask.unsqueeze(2) & mask.unsqueeze(1)
    return torch.where(counted, scores.unsqueeze(2) - scores.unsqueeze(1), 0.0), counted


def ranking_losses(
    scores: Float[Tensor, "P K"], ranks: Int[Tensor, "P K"], mask: Bool[Tensor, "P K"]
) -> tuple[Float[Tensor, "P"], Bool[Tensor, "P"]]:
    """Reward-model loss of each prompt, a mean over its untied pairs, and which prompts have one; 0 where none.

    loss = 1/|pairs| Σ_(w,l) -log σ(r_w - r_l)

    A batch's loss is the mean over the prompts that have a pair: a prompt weighs the same however many answers it has,
    for its K(K-1)/2 comparisons are correlated and count as one example. Source: Ouyang et al. 2022 (InstructGPT), eq.
    1; Bradley & Terry 1952.
    """
    margins, counted = pair_margins(scores.float(), ranks, mask)
    losses, pairs = torch.where(counted, -F.logsigmoid(margins), 0.0).sum((1, 2)), counted.sum((1, 2))
    return losses / pairs.clamp(min=1), pairs > 0


def ranking_loss(
    scores: Float[Tensor, "P K"], ranks: Int[Tensor, "P K"], mask: Bool[Tensor, "P K"]
) -> Float[Tensor, ""]:
    """The mean of `ranking_losses` over the prompts that have a pair; 0 if none has."""
    return masked_mean(*ranking_losses(scores, ranks, mask))


def dpo_losses(
    logprobs: Float[Tensor, "P K"],
    ref_logprobs: Float[Tensor, "P K"],
    ranks: Int[Tensor, "P K"],
    mask: Bool[Tensor, "P K"],
    beta: float,
) -> PreferenceLosses:
    """Direct preference optimisation: the `ranking_losses` of the rewards that the policy implies.

    loss = 1/|pairs| Σ_(w,l) -log σ(r_w - r_l),   r = β (log π(y|x) - log π_ref(y|x))

    What a reward model would add to r depends on the prompt alone and drops out of every pair. For K answers all their
    pairs count, as for a reward model; the paper has pairs only. Source: Rafailov et al. 2023, "Direct Preference
    Optimization: Your Language Model is Secretly a Reward Model", eq. 7 and, for r, eq. 5.

    Args:
        logprobs, ref_logprobs: of whole answers, nats.
        beta: reward per nat.
    """
    rewards = beta * (logprobs - ref_logprobs)
    return PreferenceLosses(*ranking_losses(rewards, ranks, mask), rewards.detach())


def preferred_nlls(
    logprobs: Float[Tensor, "P K"], lengths: Int[Tensor, "P K"], ranks: Int[Tensor, "P K"], mask: Bool[Tensor, "P K"]
) -> Float[Tensor, "P"]:
    """How unlikely each prompt's preferred answers are, nats per token; a mean over its untied pairs, 0 where it has
    none.

    nll = 1/|pairs| Σ_(w,l) -log π(y_w|x) / |y_w|

    `dpo_losses` know of differences alone, and are as content where both answers of a pair become less likely; with a
    multiple of this beside them the preferred one does not. Source: Pang et al. 2024, "Iterative Reasoning Preference
    Optimization", section 2, the second term of the loss.

    Args:
        logprobs: of whole answers, nats.
        lengths: tokens that each is a sum over.
    """
    preferred = pair_margins(logprobs, ranks, mask)[1].sum(2)  # how many answers each one is preferred to
    nats = torch.where(preferred > 0, -logprobs.float() / lengths, 0.0)
    return (preferred * nats).sum(1) / preferred.sum(1).clamp(min=1)


def ppo_clip_loss(
    logprobs: Float[Tensor, "B R"],
    old_logprobs: Float[Tensor, "B R"],
    advantages: Float[Tensor, "B R"],
    mask: Bool[Tensor, "B R"],
    clip: float = 0.2,
    normaliser: float | Tensor | None = None,
    clip_high: float | None = None,
    sequences: float | Tensor | None = None,
) -> PolicyLoss:
    """Clipped surrogate objective, as a loss per counted token.

    loss = E[ max(-Â ρ, -Â clip(ρ, 1-ε, 1+ε_high)) ],   ρ = π(a|s) / π_old(a|s)

    `clip_high`: ε_high; None: ε. `sequences`: E is the mean over answers of each answer's own mean, divided as
    `sequence_mean` divides; None: the mean over tokens, as always of the statistics. The log-ratio is limited to ±20
    before the exponential. Source: Schulman et al. 2017, "Proximal Policy Optimization Algorithms", eq. 7; the upper
    limit of its own Yu et al. 2025, "DAPO", eq. 10; the mean over answers Shao et al. 2024, "DeepSeekMath", eq. 3.
    """
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0.0).clamp(-_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT)
    ratio = log_ratio.exp()
    limited = ratio.clamp(1.0 - clip, 1.0 + (clip if clip_high is None else clip_high))
    unclipped, clipped = -advantages * ratio, -advantages * limited
    loss = _answers_mean(torch.maximum(unclipped, clipped), mask, normaliser, sequences)
    with torch.no_grad():
        statistics = (0.5 * log_ratio.square(), (clipped > unclipped).float(), ratio)
        return PolicyLoss(loss, *(token_mean(values, mask, normaliser) for values in statistics))


def kl_loss(
    logprobs: Float[Tensor, "B R"],
    ref_logprobs: Float[Tensor, "B R"],
    mask: Bool[Tensor, "B R"],
    kind: Literal["k2", "k3"],
    normaliser: float | Tensor | None = None,
    sequences: float | Tensor | None = None,
) -> Float[Tensor, ""]:
    """The distance to the reference as a loss per counted token, nats: `kl_estimate` of this kind, whose mean is that
    of `ppo_clip_loss`.

    k3 is what GRPO has (Shao et al. 2024, "DeepSeekMath", eq. 4); its value is the KL's, its gradient that of the
    reverse, KL(π_ref ‖ π). The gradient of k2 is the KL's own. Either holds at π = π_old.
    """
    return _answers_mean(kl_estimate(logprobs, ref_logprobs, kind), mask, normaliser, sequences)


def clipped_value_loss(
    values: Float[Tensor, "B R"],
    old_values: Float[Tensor, "B R"],
    returns: Float[Tensor, "B R"],
    mask: Bool[Tensor, "B R"],
    clip: float = 0.2,
    normaliser: float | Tensor | None = None,
) -> ValueLoss:
    """Critic loss per counted token that removes the reward for moving further than `clip` from the old value.

    loss = ½ E[ max((V - R)², (clip(V, V_old-ε, V_old+ε) - R)²) ]

    The maximum is pessimistic: a value that moved too far *away* from its return keeps its gradient and is pulled back.
    Source: the code of Ziegler et al. 2019 and of OpenAI baselines' ppo2 (no paper has the equation).
    """
    limited = values.clamp(old_values - clip, old_values + clip)
    unclipped, clipped = (torch.where(mask, v - returns, 0.0).square() for v in (values, limited))
    loss = 0.5 * token_mean(torch.maximum(unclipped, clipped), mask, normaliser)
    return ValueLoss(loss, token_mean((clipped > unclipped).float(), mask, normaliser))


def supervised_scores(outputs: Float[Tensor, "B *S"], targets: Tensor) -> tuple[Float[Tensor, ""], Float[Tensor, "B"]]:
    """The loss of a set of examples, and for each example whether it was answered right, 1.0 or 0.0.

    Class numbers or tokens (B, ...) with logits (B, ..., V): mean cross-entropy over the targets that are not -100; an
    example is right where all of these are the likeliest. Numbers (B, ...) with outputs of that shape: mean squared
    error, and nothing counts as right. All logits are formed, for the chunked losses of `logprobs` have no second
    derivative; made of operations that `vmap` knows.
    """
    if targets.is_floating_point():
        return F.mse_loss(outputs.float(), targets), torch.zeros(len(outputs), device=outputs.device)
    asked = targets != IGNORED
    index = targets.clamp(min=0).unsqueeze(-1)
    logits = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    nats = -logits.log_softmax(-1).gather(-1, index).squeeze(-1)
    loss = torch.where(asked, nats, 0.0).sum() / asked.sum().clamp(min=1)
    right = (logits.argmax(-1) == targets) | ~asked
    return loss, right.reshape(len(right), -1).all(1).to(loss.dtype)


@torch.no_grad()
def explained_variance(
    values: Float[Tensor, "B R"], returns: Float[Tensor, "B R"], mask: Bool[Tensor, "B R"]
) -> Float[Tensor, ""]:
    """Share of the returns' variance that the critic explains: 1 perfect, 0 a constant's, below 0 worse.

    EV = 1 - Var(R - V) / Var(R);   0 where the returns do not vary.
    """
    unexplained, total = (_variance(x, mask) for x in (returns - values, returns))
    return torch.where(total > 0, 1.0 - unexplained / total, 0.0)


def _answers_mean(
    values: Float[Tensor, "B R"],
    mask: Bool[Tensor, "B R"],
    normaliser: float | Tensor | None,
    sequences: float | Tensor | None,
) -> Float[Tensor, ""]:
    if sequences is None:
        return token_mean(values, mask, normaliser)
    return sequence_mean(values, mask, sequences)


def _variance(values: Float[Tensor, "B R"], mask: Bool[Tensor, "B R"]) -> Float[Tensor, ""]:
    return masked_mean((values - masked_mean(values, mask)).square(), mask)
