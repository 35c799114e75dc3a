"""One iteration's experience: sample responses, score them, and turn scores into advantages."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gpt_modules.backbone import GPT, RewardModel, generate
from gpt_modules.data.batches import PromptBatch
from gpt_modules.functional import (
    explained_variance,
    gather_responses,
    generalized_advantage_estimation,
    kl_estimate,
    kl_shaped_rewards,
    linear_logprobs,
    masked_mean,
    masked_whiten,
)
from gpt_modules.training.rl.rewards import Sequences


class Rollout(NamedTuple):
    """What the update needs of an iteration, or of a minibatch of it. R counts response tokens, the end-of-text token
    included.

    tokens: (B, T) prompt and response, right-padded.
    prompt_lengths: (B,) tokens of the prompt.
    responses: (B, R) ids of the response.
    mask: (B, R) True where a response token stands.
    logprobs: (B, R) of the sampled tokens under the policy that sampled them.
    values: (B, R) of the critic before the update.
    advantages: (B, R) GAE, whitened over the iteration.
    returns: (B, R) targets of the critic.
    """

    tokens: Int[Tensor, "B T"]
    prompt_lengths: Int[Tensor, "B"]
    responses: Int[Tensor, "B R"]
    mask: Bool[Tensor, "B R"]
    logprobs: Float[Tensor, "B R"]
    values: Float[Tensor, "B R"]
    advantages: Float[Tensor, "B R"]
    returns: Float[Tensor, "B R"]


class Scored(NamedTuple):
    """Sampled responses and what is known of them before any reward is shaped.

    sequences: prompts and responses.
    responses, mask: (B, R).
    logprobs, ref_logprobs: (B, R) under the policy and the reference.
    entropy: (B, R) of the policy's distribution, nats.
    scores: (B,) of the reward.
    ended: (B,) True where the response ends with the end-of-text token.
    """

    sequences: Sequences
    responses: Int[Tensor, "B R"]
    mask: Bool[Tensor, "B R"]
    logprobs: Float[Tensor, "B R"]
    ref_logprobs: Float[Tensor, "B R"]
    entropy: Float[Tensor, "B R"]
    scores: Float[Tensor, "B"]
    ended: Bool[Tensor, "B"]

    def sequence_kl(self) -> Float[Tensor, "B"]:
        """Sum over the response of log pi - log pi_ref: the KL estimate of a whole answer, in nats."""
        return (kl_estimate(self.logprobs, self.ref_logprobs) * self.mask).sum(1)


class Sampling(NamedTuple):
    """How responses are drawn; the same temperature divides the logits wherever a log-probability is taken."""

    max_new_tokens: int
    temperature: float
    eos_id: int


def assemble(prompts: PromptBatch, responses: Tensor, mask: Tensor) -> Sequences:
    """Prompt and response of each row side by side without a gap, right-padded to the longest row."""
    lengths = prompts.lengths + mask.sum(1)
    rows = torch.zeros(
        len(lengths), prompts.tokens.shape[1] + responses.shape[1], dtype=torch.long, device=responses.device
    )
    rows[:, : prompts.tokens.shape[1]] = prompts.tokens
    places = prompts.lengths[:, None] + torch.arange(responses.shape[1], device=responses.device)
    rows.scatter_(1, places, torch.where(mask, responses, 0))
    return Sequences(rows[:, : int(lengths.max())], prompts.lengths, lengths)


def sample(
    policy: GPT, prompts: PromptBatch, sampling: Sampling, generator: torch.Generator
) -> tuple[Sequences, Tensor, Tensor]:
    """Draw one response a prompt from the policy itself: no top-k, no top-p. Returns sequences, responses (B, R) and
    mask (B, R).
    """
    columns = torch.arange(prompts.tokens.shape[1], device=prompts.tokens.device)
    drawn = generate(
        policy,
        (prompts.tokens, columns < prompts.lengths[:, None]),
        max_new_tokens=sampling.max_new_tokens,
        eos_id=sampling.eos_id,
        temperature=sampling.temperature,
        generator=generator,
    )
    longest = int(drawn.mask.sum(1).max())
    responses, mask = drawn.tokens[:, :longest], drawn.mask[:, :longest]
    return assemble(prompts, responses, mask), responses, mask


def response_logprobs(
    model: GPT, tokens: Tensor, prompt_lengths: Tensor, responses: Tensor, temperature: float
) -> tuple[Float[Tensor, "B R"], Float[Tensor, "B R"]]:
    """Log-probabilities of the response tokens and the entropies there; logits are formed at response positions
    only.
    """
    states = gather_responses(model.hidden(tokens), prompt_lengths, responses.shape[1])
    logprobs, entropy = linear_logprobs(states, model.head_weight, responses, temperature)
    return logprobs, entropy


def response_values(critic: RewardModel, tokens: Tensor, prompt_lengths: Tensor, width: int) -> Float[Tensor, "B R"]:
    """The critic's value of the state before each response token."""
    return gather_responses(critic.token_values(tokens), prompt_lengths, width).float()


def in_pieces(function: Callable[..., tuple[Tensor, ...]], size: int, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Apply a function to `size` rows at a time and join the results: bounds the memory of a forward over a whole
    iteration.
    """
    pieces = [function(*piece) for piece in zip(*(torch.split(tensor, size) for tensor in tensors), strict=True)]
    return tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))


@torch.no_grad()
def score_responses(
    policy: GPT,
    reference: GPT,
    reward: Callable[[Sequences], Tensor],
    prompts: PromptBatch,
    sampling: Sampling,
    generator: torch.Generator,
    rows: int,
) -> Scored:
    """Sample, then take log-probabilities from the training forward: the sampler's differ by its rounding."""
    sequences, responses, mask = sample(policy, prompts, sampling, generator)

    def logprobs(tokens: Tensor, lengths: Tensor, chosen: Tensor) -> tuple[Tensor, ...]:
        own, entropy = response_logprobs(policy, tokens, lengths, chosen, sampling.temperature)
        theirs, _ = response_logprobs(reference, tokens, lengths, chosen, sampling.temperature)
        return own, theirs, entropy

    own, theirs, entropy = in_pieces(logprobs, rows, sequences.tokens, sequences.prompt_lengths, responses)
    (scores,) = in_pieces(lambda *piece: (reward(Sequences(*piece)),), rows, *sequences)
    last = sequences.tokens.gather(1, sequences.lengths[:, None] - 1)[:, 0]
    return Scored(sequences, responses, mask, own, theirs, entropy, scores, last == sampling.eos_id)


class Shaping(NamedTuple):
    """How scores become advantages.

    missing_eos_score: replaces the score of a response that did not end; None leaves it.
    whiten_rewards: scale rewards to unit variance, keeping their mean (Ziegler et al.'s code).
    whiten_advantages: to mean 0 and variance 1 over the iteration.
    """

    gamma: float = 1.0
    lam: float = 0.95
    missing_eos_score: float | None = -1.0
    whiten_rewards: bool = False
    whiten_advantages: bool = True


@torch.no_grad()
def shape_rollout(
    scored: Scored, critic: RewardModel, kl_coef: Tensor, shaping: Shaping, rows: int
) -> tuple[Rollout, Tensor]:
    """KL-shaped rewards (Ouyang et al. 2022, eq. 2, per token), values and GAE. Returns the rollout and the shaped
    rewards (B, R).
    """
    tokens, prompt_lengths, _ = scored.sequences
    width = scored.responses.shape[1]
    (values,) = in_pieces(lambda t, n: (response_values(critic, t, n, width),), rows, tokens, prompt_lengths)
    values = torch.where(scored.mask, values, 0.0)
    scores = scored.scores
    if shaping.missing_eos_score is not None:
        scores = torch.where(scored.ended, scores, shaping.missing_eos_score)
    kl = kl_estimate(scored.logprobs, scored.ref_logprobs)
    rewards = kl_shaped_rewards(scores, kl, scored.mask, kl_coef)
    if shaping.whiten_rewards:
        rewards = masked_whiten(rewards, scored.mask, shift_mean=False)
    advantages, returns = generalized_advantage_estimation(rewards, values, scored.mask, shaping.gamma, shaping.lam)
    if shaping.whiten_advantages:
        advantages = masked_whiten(advantages, scored.mask)
    rollout = Rollout(
        tokens, prompt_lengths, scored.responses, scored.mask, scored.logprobs, values, advantages, returns
    )
    return rollout, rewards


def rollout_statistics(scored: Scored, rollout: Rollout, rewards: Tensor) -> dict[str, Tensor]:
    """What a run is watched by, over response tokens only; `rewards` are the shaped ones, (B, R)."""
    mask = scored.mask
    return {
        "objective/score": scored.scores.mean(),
        "objective/score_std": scored.scores.std(unbiased=False),
        "objective/reward": (rewards * mask).sum(1).mean(),
        "objective/entropy": masked_mean(scored.entropy, mask),
        "response/length": mask.sum(1).float().mean(),
        "response/ended": scored.ended.float().mean(),
        "value/explained_variance": explained_variance(rollout.values, rollout.returns, mask),
        "value/returns": masked_mean(rollout.returns, mask),
    }
