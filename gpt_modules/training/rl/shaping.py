"""The second half of an iteration's experience: scores, KL and values become rewards, advantages and returns."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from gpt_modules.errors import UserError, expect
from gpt_modules.functional import (
    distinct_ngrams,
    explained_variance,
    generalized_advantage_estimation,
    kl_estimate,
    kl_shaped_rewards,
    masked_mean,
    masked_whiten,
    repeated_ngrams,
)
from gpt_modules.training.processes import in_order
from gpt_modules.training.rl.estimators import group_advantages
from gpt_modules.training.rl.rollout import Scored
from gpt_modules.training.rl.scores import optimised
from gpt_modules.training.rl.settings import Shaping

FEWEST = 8  # episodes of a minibatch that is whitened by itself, as Ziegler et al.'s code asserts

DIVERSITY = ("length_p10", "length_p50", "length_p90", "distinct_1", "distinct_2")


class Cut(NamedTuple):
    """Rows of a rollout, and how wide they are: numbers of Python, so that taking them waits for no device.

    rows: (N,)
    text: tokens of their longest prompt and response together.
    response: of their longest response.
    tokens: of their responses, all together; None: nobody has counted them.
    """

    rows: Int[Tensor, "N"]
    text: int
    response: int
    tokens: int | None = None


class Rollout(NamedTuple):
    """What the update needs of an iteration, or of a minibatch of it. R counts response tokens, the end-of-text token
    included.

    tokens: (B, T) prompt and response, right-padded.
    prompt_lengths: (B,) tokens of the prompt.
    responses: (B, R) ids of the response.
    mask: (B, R) True where a response token stands.
    logprobs: (B, R) of the sampled tokens under the policy that sampled them.
    advantages: (B, R) by a critic, whitened over the iteration or not yet; else those of an answer on each of its
        tokens.
    values: (B, R) of the critic before the update; None without one.
    returns: (B, R) targets of the critic; None without one.
    ref_logprobs: (B, R) under the reference, where the loss has the distance to it; else None.
    rewards: (B, R) before any whitening, the penalty taken off; None without a critic, for nothing is whitened.
    """

    tokens: Int[Tensor, "B T"]
    prompt_lengths: Int[Tensor, "B"]
    responses: Int[Tensor, "B R"]
    mask: Bool[Tensor, "B R"]
    logprobs: Float[Tensor, "B R"]
    advantages: Float[Tensor, "B R"]
    values: Float[Tensor, "B R"] | None = None
    returns: Float[Tensor, "B R"] | None = None
    ref_logprobs: Float[Tensor, "B R"] | None = None
    rewards: Float[Tensor, "B R"] | None = None

    def take(self, cut: Cut) -> "Rollout":
        """These rows of it, no wider than they are."""
        rows = cut.rows.to(self.tokens.device, non_blocking=True)
        taken = {name: field[rows] for name, field in self.present().items()}
        tokens, prompt_lengths = taken.pop("tokens")[:, : cut.text], taken.pop("prompt_lengths")
        cells = {name: cell[:, : cut.response] for name, cell in taken.items()}
        return Rollout(tokens=tokens, prompt_lengths=prompt_lengths, **cells)

    def present(self) -> dict[str, Tensor]:
        """The fields that there are, by name."""
        return {name: field for name, field in self._asdict().items() if field is not None}


def over_processes(
    numbers: Int[Tensor, "B"], scored: Scored, values: Float[Tensor, "B R"] | None
) -> tuple[Scored, Float[Tensor, "E R"] | None]:
    """The whole iteration's responses and values from every process's own, in the order of their numbers.

    Whitening, statistics and the minibatches are of all episodes, so every process holds them all: numbers a token, a
    few megabytes beside the models. It is what makes one device and eight take the same step.
    """
    fields, form = tree_flatten(scored._replace(values=values))
    found = iter(in_order(numbers, [field for field in fields if field is not None]))
    whole: Scored = tree_unflatten([None if field is None else next(found) for field in fields], form)
    return whole, whole.values


def optimised_scores(scored: Scored, shaping: Shaping) -> Float[Tensor, "B"]:
    """The score that the policy is trained on, see `scores`."""
    lengths, missing = scored.mask.sum(1), shaping.missing_eos_score
    return optimised(scored.scores, scored.ended, lengths, shaping.scores, shaping.moments, missing)


@torch.no_grad()
def shape_rollout(
    scored: Scored, values: Float[Tensor, "B R"] | None, kl_coef: float, shaping: Shaping, answers: int = 1
) -> tuple[Rollout, Float[Tensor, "B R"]]:
    """KL-shaped rewards (Ouyang et al. 2022, eq. 2, per token) and the estimator's advantages. Returns the rollout and
    the rewards.

    Args:
        values: of the critic; None where the estimator has none.
        kl_coef: of the penalty in the reward.
        answers: to a prompt, which stand one after the other.
    """
    kl = kl_estimate(scored.logprobs, scored.ref_logprobs)
    rewards = kl_shaped_rewards(optimised_scores(scored, shaping), kl, scored.mask, kl_coef)
    _expect_squares(rewards, scored, kl_coef, shaping)
    tokens, prompt_lengths, *_ = scored.sequences
    sampled = (tokens, prompt_lengths, scored.responses, scored.mask, scored.logprobs)
    if values is None:
        return Rollout(*sampled, group_advantages(rewards, scored.mask, shaping.estimator, answers)), rewards
    white = shaping.whiten_over == "rollout"
    advantages, returns, shaped = _advantages(rewards, values, scored.mask, shaping, white)
    return Rollout(*sampled, advantages, values, returns, rewards=rewards), shaped


def _expect_squares(rewards: Float[Tensor, "B R"], scored: Scored, kl_coef: float, shaping: Shaping) -> None:
    """Advantages, returns and the critic's loss have sums and squares of the rewards, in float32: what overflows there
    would be told later as a loss that is not finite, or be whitened to nothing.

    Raises:
        UserError: it would; with what made them so large.
    """
    totals = torch.where(scored.mask, rewards, 0.0).abs().sum(1)
    if bool(totals.square().sum().isfinite()):
        return
    costs = (scored.mask.sum(1) - shaping.scores.free_length).clamp_min(0).double() * shaping.scores.length_penalty
    missing = 0.0 if shaping.missing_eos_score is None else abs(shaping.missing_eos_score)
    found = {
        "rewards": float(scored.scores.abs().max()),
        "missing_eos_score": missing if bool((~scored.ended).any()) else 0.0,
        "scores.length_penalty": float(costs.max()),
        "kl.coef": kl_coef * float(scored.sequence_kl().abs().max()),
    }
    name = max(found, key=lambda one: found[one])
    expected = "of an answer, expected numbers whose squares float32 can sum"
    raise UserError(f"model.{name}: found {found[name]:.3g} {expected}")


def expect_enough(whiten_over: str, episodes: int) -> None:
    """Raises:
    UserError: minibatches of so few episodes are to be whitened each by itself.
    """
    fits = whiten_over == "rollout" or episodes >= FEWEST
    expected = f"minibatches of at least {FEWEST} episodes for it, not of {episodes}"
    expect(fits, "model.whiten_over", whiten_over, expected)


@torch.no_grad()
def whitened_alone(rollout: Rollout, cut: Cut, minibatch: Cut, shaping: Shaping) -> Rollout:
    """These rows of a rollout, with advantages and returns whitened over the minibatch that they are of, as in Ziegler
    et al.'s code.

    Args:
        cut: some of the minibatch's: a micro-batch, or a process's share.
        minibatch: all of an optimizer step's, over its micro-batches and processes.
    """
    part, device = rollout.take(minibatch), rollout.tokens.device
    assert part.rewards is not None
    assert part.values is not None
    advantages, returns, _ = _advantages(part.rewards, part.values, part.mask, shaping, True)
    all_rows, rows = (of.rows.to(device, non_blocking=True) for of in (minibatch, cut))
    places = (all_rows[None] == rows[:, None]).int().argmax(1)
    return part._replace(advantages=advantages, returns=returns).take(cut._replace(rows=places))


def _advantages(
    rewards: Float[Tensor, "B R"],
    values: Float[Tensor, "B R"],
    mask: Bool[Tensor, "B R"],
    shaping: Shaping,
    white: bool,
) -> tuple[Float[Tensor, "B R"], Float[Tensor, "B R"], Float[Tensor, "B R"]]:
    """GAE's advantages and returns, and the rewards that they are of; whitened as asked for where `white`."""
    if white and shaping.whiten_rewards:
        rewards = masked_whiten(rewards, mask, shift_mean=False)
    advantages, returns = generalized_advantage_estimation(rewards, values, mask, shaping.gamma, shaping.lam)
    return masked_whiten(advantages, mask) if white and shaping.whiten_advantages else advantages, returns, rewards


def response_statistics(
    scored: Scored, kl_coef: float, shaping: Shaping, terms: Sequence[str] = ()
) -> dict[str, Float[Tensor, "B"]]:
    """What is known of each response.

    `score` is the reward's own, whether the response ended or not; `optimised_score` is what training uses of it, and
    `reward` what it maximises: the optimised score less the penalty, before any whitening. `reward_spread` is there
    where the reward has ensembles: the sum of their spreads; `score/...` of each of its `terms`, by name.
    """
    optimised, kl = optimised_scores(scored, shaping), scored.sequence_kl()
    return {
        "score": scored.scores,
        "optimised_score": optimised,
        "reward": optimised - kl_coef * kl,
        "kl": kl,
        "length": scored.mask.sum(1).float(),
        "ended": scored.ended.float(),
        "repetition": repeated_ngrams(scored.responses, scored.mask),
        **({"reward_spread": scored.spreads.sum(1)} if scored.spreads.shape[1] else {}),
        **{f"score/{name}": scored.terms[:, i] for i, name in enumerate(terms)},
    }


def rollout_statistics(
    scored: Scored, rollout: Rollout, kl_coef: float, shaping: Shaping, answers: int = 1, terms: Sequence[str] = ()
) -> dict[str, Tensor]:
    """What a run is watched by: means over all responses, or over all response tokens.

    Args:
        answers: to a prompt, which stand one after the other.
        terms: names of those of the reward; none where it has one.
    """
    responses, mask = response_statistics(scored, kl_coef, shaping, terms), scored.mask
    rooms = dict.fromkeys(("length", "ended", "repetition"), "response")
    values, returns = rollout.values, rollout.returns
    return {
        **{f"{rooms.get(name, 'objective')}/{name}": values.double().mean() for name, values in responses.items()},
        "objective/score_std": scored.scores.std(unbiased=False),
        **_scores_statistics(scored, shaping, answers),
        "objective/entropy": masked_mean(scored.entropy, mask),
        **({} if values is None or returns is None else _critics_statistics(values, returns, mask)),
        **{f"response/{name}": value for name, value in diversity(scored.responses, mask).items()},
        **sampler_agreement(scored),
    }


def _scores_statistics(scored: Scored, shaping: Shaping, answers: int) -> dict[str, Tensor]:
    """Of what became of them. `objective/groups_without_spread` is the share of prompts whose answers are all optimised
    alike: measured by one another, as without a critic, they teach nothing of the reward.
    """
    found, scores, moments = dict[str, Tensor](), scored.scores, shaping.moments
    if moments.seen:
        units = {"score_gain": 1.0 / moments.deviation, "score_bias": -moments.mean / moments.deviation}
        found |= {f"objective/{name}": scores.new_full((), value, dtype=torch.float64) for name, value in units.items()}
    if shaping.scores.clip is not None:
        found["objective/clipped_scores"] = (moments.normalised(scores).abs() > shaping.scores.clip).double().mean()
    if not shaping.estimator.has_critic:
        groups = optimised_scores(scored, shaping).view(-1, answers)
        found["objective/groups_without_spread"] = (groups == groups[:, :1]).all(1).double().mean()
    return found


def _critics_statistics(values: Tensor, returns: Tensor, mask: Tensor) -> dict[str, Tensor]:
    return {
        "value/explained_variance": explained_variance(values, returns, mask),
        "value/returns": masked_mean(returns, mask),
    }


def diversity(responses: Int[Tensor, "B R"], mask: Bool[Tensor, "B R"]) -> dict[str, Float[Tensor, ""]]:
    """What no mean over responses tells: how their lengths spread, and how many words they have between them."""
    lengths = mask.sum(1).double()
    quantiles = [lengths.quantile(percent / 100) for percent in (10, 50, 90)]
    return dict(zip(DIVERSITY, [*quantiles, *(distinct_ngrams(responses, mask, n) for n in (1, 2))], strict=True))


def sampler_agreement(scored: Scored) -> dict[str, Float[Tensor, ""]]:
    """How far the sampler lies from the training forward, whose log-probabilities the update begins with: KL(sampler ‖
    policy) in nats a token, by the estimate that is never negative, and the largest difference of a probability.
    """
    sampled, own, mask = scored.sampled, scored.logprobs, scored.mask
    apart = torch.where(mask, sampled.exp() - own.exp(), 0.0).abs()
    return {"sampler/kl": masked_mean(kl_estimate(sampled, own, "k3"), mask), "sampler/max_prob_error": apart.max()}
