"""The first half of an iteration's experience: sample responses and take their log-probabilities and scores."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeGuard

import lightning.pytorch as L
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from lightning.pytorch.profilers import PassThroughProfiler, Profiler
from torch import Tensor

from gpt_modules.backbone import GPT, RewardModel, generate
from gpt_modules.backbone.decoding.generation import ends_of, is_end
from gpt_modules.data.batches import PromptBatch
from gpt_modules.functional import Counted, kl_estimate, linear_logprobs
from gpt_modules.training import processes
from gpt_modules.training.rl.rewards import Reward, Scores
from gpt_modules.training.rl.sequences import Sequences
from gpt_modules.training.rl.settings import Sampling
from gpt_modules.training.sharding.models import gathered, held


class Scored(NamedTuple):
    """Sampled responses and what is known of them before any reward is shaped.

    sequences: prompts and responses.
    responses, mask: (B, R).
    logprobs, ref_logprobs: (B, R) under the policy and the reference.
    entropy: (B, R) of the policy's distribution, nats.
    scores: (B,) of the reward.
    spreads: (B, E) how far the members of each of its ensembles lie apart.
    sampled: (B, R) log-probabilities as the sampler had them.
    terms: (B, S) of the terms that the scores are the sum of.
    values: (B, R) of a critic on the policy's trunk, which the same pass gives; None: the critic has its own.
    """

    sequences: Sequences
    responses: Int[Tensor, "B R"]
    mask: Bool[Tensor, "B R"]
    logprobs: Float[Tensor, "B R"]
    ref_logprobs: Float[Tensor, "B R"]
    entropy: Float[Tensor, "B R"]
    scores: Float[Tensor, "B"]
    spreads: Float[Tensor, "B E"]
    sampled: Float[Tensor, "B R"]
    terms: Float[Tensor, "B S"]
    values: Float[Tensor, "B R"] | None = None

    @property
    def ended(self) -> Bool[Tensor, "B"]:
        """True where the response came to its end and was not cut off."""
        return self.sequences.ended

    def sequence_kl(self) -> Float[Tensor, "B"]:
        """Sum over the response of log pi - log pi_ref: the KL estimate of a whole answer, in nats."""
        return (kl_estimate(self.logprobs, self.ref_logprobs) * self.mask).sum(1)


def autocast_type(module: L.LightningModule) -> torch.dtype | None:
    """What the run's products are cast to; None: nothing is."""
    return {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(str(module.trainer.precision))


@contextmanager
def inference(module: L.LightningModule) -> Iterator[None]:
    """The run's precision with cached casts: without gradients every decode step may reuse the same bf16 weights."""
    training = module.training
    module.eval()
    half = autocast_type(module)
    with torch.no_grad(), torch.autocast(module.device.type, dtype=half, enabled=half is not None):
        yield
    module.train(training)


def noise(key: Sequence[int], numbers: Int[Tensor, "B"]) -> list[torch.Generator]:
    """A generator for what each row says, a function of the key and of the row's number alone: not of the rows beside
    it, of the process, or of the device.
    """
    seeds = [np.random.SeedSequence((*key, number)).generate_state(1)[0] for number in numbers.tolist()]
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


def assemble(prompts: PromptBatch, responses: Tensor, mask: Tensor, ended: Tensor) -> Sequences:
    """Prompt and response of each row side by side without a gap, right-padded to the longest row."""
    lengths = prompts.lengths + mask.sum(1)
    rows = torch.zeros(
        len(lengths), prompts.tokens.shape[1] + responses.shape[1], dtype=torch.long, device=responses.device
    )
    rows[:, : prompts.tokens.shape[1]] = prompts.tokens
    places = prompts.lengths[:, None] + torch.arange(responses.shape[1], device=responses.device)
    rows.scatter_(1, places, torch.where(mask, responses, 0))
    return Sequences(rows[:, : int(lengths.max())], prompts.lengths, lengths, ended, prompts.rows)


def reached_end(responses: Int[Tensor, "B R"], mask: Bool[Tensor, "B R"], sampling: Sampling) -> Bool[Tensor, "B"]:
    """Whether each response's last token is one at which it may end."""
    counts = mask.sum(1)
    last = responses.gather(1, counts[:, None] - 1)[:, 0]
    return is_end(last, ends_of(sampling.ends, last.device)) & (counts > sampling.truncate_after)


def sample(
    policy: GPT, prompts: PromptBatch, sampling: Sampling, key: Sequence[int]
) -> tuple[Sequences, Tensor, Tensor, Tensor]:
    """Draw one response a prompt from the policy itself: no top-k, no top-p. Returns sequences, responses (B, R), mask
    (B, R) and the log-probabilities (B, R) that they were drawn with.
    """
    columns = torch.arange(prompts.tokens.shape[1], device=prompts.tokens.device)
    drawn = generate(
        policy,
        (prompts.tokens, columns < prompts.lengths[:, None]),
        max_new_tokens=sampling.max_new_tokens,
        eos_id=sampling.ends,
        ends_after=sampling.truncate_after,
        temperature=sampling.temperature if sampling.draw is None else sampling.draw,
        generator=noise(key, prompts.numbers),
        cache_bytes=sampling.cache_bytes,
    )
    longest = int(drawn.mask.sum(1).max())
    responses, mask = drawn.tokens[:, :longest], drawn.mask[:, :longest]
    sequences = assemble(prompts, responses, mask, reached_end(responses, mask, sampling))
    return sequences, responses, mask, drawn.logprobs[:, :longest]


def response_logprobs(
    model: GPT, tokens: Tensor, prompt_lengths: Tensor, responses: Tensor, mask: Tensor, temperature: float
) -> tuple[Float[Tensor, "B R"], Float[Tensor, "B R"]]:
    """Log-probabilities of the response tokens that count and the entropies there, 0 elsewhere; logits are formed for
    these alone.
    """
    logprobs, entropy, _ = response_outputs(model, None, tokens, prompt_lengths, responses, mask, temperature)
    return logprobs, entropy


def response_outputs(
    policy: GPT,
    critic: RewardModel | None,
    tokens: Tensor,
    prompt_lengths: Tensor,
    responses: Tensor,
    mask: Tensor,
    temperature: float,
    policy_rests: bool = False,
    count: int | None = None,
) -> tuple[Float[Tensor, "B R"], Float[Tensor, "B R"], Float[Tensor, "B R"] | None]:
    """As `response_logprobs`; third, what a critic that stands on the policy's trunk says of the same states, None for
    any other. Where the policy rests, only the critic's head has a gradient. `count`: as of `Counted.of`.
    """
    counted = Counted.of(prompt_lengths, mask, tokens.shape[1], count)
    with torch.set_grad_enabled(torch.is_grad_enabled() and not policy_rests):
        states = policy.hidden(tokens, read=counted.states)
        chosen = responses.flatten().index_select(0, counted.cells)
        logprobs, entropy = linear_logprobs(states, policy.head_weight, chosen, temperature)
    values = counted.spread(critic.head(states), mask) if shares_trunk(critic, policy) else None
    return counted.spread(logprobs, mask), counted.spread(entropy, mask), values


def shares_trunk(critic: RewardModel | None, policy: GPT) -> TypeGuard[RewardModel]:
    """Whether one pass of the policy's trunk serves both."""
    return critic is not None and critic.decoder is policy.decoder


def response_values(
    critic: RewardModel, tokens: Tensor, prompt_lengths: Tensor, mask: Tensor, count: int | None = None
) -> Float[Tensor, "B R"]:
    """The critic's value of the state before each response token that counts, 0 elsewhere. `count`: as of
    `Counted.of`.
    """
    counted = Counted.of(prompt_lengths, mask, tokens.shape[1], count)
    return counted.spread(critic.token_values(tokens, read=counted.states), mask)


def in_pieces(
    function: Callable[..., tuple[Tensor, ...]], size: int, sequences: Sequences, *others: Tensor
) -> tuple[Tensor, ...]:
    """Apply a function to the sequences and what else there is a row, `size` rows at a time, and join the results in
    the rows' own order: bounds the memory of a forward over a whole iteration. Rows of like length are together, and no
    piece is wider than its longest row.
    """
    order = sequences.lengths.argsort(stable=True)
    lengths = sequences.lengths[order].tolist()
    pieces = [
        function(sequences.take(rows, max(lengths[i * size : (i + 1) * size])), *(tensor[rows] for tensor in others))
        for i, rows in enumerate(torch.split(order, size))
    ]
    back = order.argsort()
    return tuple(torch.cat(parts)[back] for parts in zip(*pieces, strict=True))


@torch.no_grad()
def score_responses(
    policy: GPT,
    reference: GPT,
    reward: Callable[[Sequences], Scores],
    prompts: PromptBatch,
    sampling: Sampling,
    key: Sequence[int],
    rows: int,
    critic: RewardModel | None = None,
    profiler: Profiler | None = None,
) -> Scored:
    """Sample, then take log-probabilities from the training forward: the sampler's differ by its rounding.

    Of sharded models all processes take part, each with prompts, or by `sit_out`; one model at a time is whole on every
    device.

    Args:
        key: whole numbers, 0 or more, that name this draw; see `noise`.
        rows: of a forward pass.
        critic: asked for its values, too, where it stands on the policy's trunk.
        profiler: told when it samples.
    """

    def outputs(part: Sequences, chosen: Tensor, counts: Tensor) -> tuple[Tensor, ...]:
        text = (part.tokens, part.prompt_lengths, chosen, counts, sampling.temperature)
        *own, values = response_outputs(policy, critic, *text)
        return *own, *([] if values is None else [values])

    def of_reference(part: Sequences, chosen: Tensor, counts: Tensor) -> tuple[Tensor, ...]:
        text = (part.tokens, part.prompt_lengths, chosen, counts, sampling.temperature)
        return response_logprobs(reference, *text)

    with held(*([critic.head] if shares_trunk(critic, policy) else [])), gathered(policy) as speaker:
        with (profiler or PassThroughProfiler()).profile("[PPOModule]sampling"):
            sequences, responses, mask, sampled = sample(speaker, prompts, sampling, key)
        own, entropy, *valued = in_pieces(outputs, rows, sequences, responses, mask)
    with held(reference):
        theirs, _ = in_pieces(of_reference, rows, sequences, responses, mask)
    with held(*models_of(reward)):
        scores, spreads, terms = in_pieces(reward, rows, sequences)
    values = valued[0] if valued else None
    return Scored(sequences, responses, mask, own, theirs, entropy, scores, spreads, sampled, terms, values)


def sit_out(policy: GPT, reference: GPT, reward: Callable[[Sequences], Scores]) -> None:
    """For a process without prompts, while others score answers to theirs: they need its shards, model after model."""
    for models in ([policy], [reference], models_of(reward)):
        with held(*models):
            pass


def models_of(*rewards: Callable[[Sequences], Scores]) -> list[RewardModel]:
    """Those that say a score; none of a function."""
    return [model for reward in rewards if isinstance(reward, Reward) for model in reward.models().values()]


@torch.no_grad()
def mean_score(scorer: Callable[[Sequences], Tensor], answers: Sequence[Scored], rows: int) -> float:
    """Of the answers of all processes, which all call it; `rows` of a forward pass."""
    found = [in_pieces(lambda part: (scorer(part),), rows, scored.sequences)[0] for scored in answers]
    return float(processes.gathered([torch.cat(found)])[0].double().mean())


@torch.no_grad()
def value_responses(critic: RewardModel, scored: Scored, rows: int) -> Float[Tensor, "B R"]:
    """The critic's values of the states before the response tokens; 0 where there is none. What the policy's pass gave
    is not computed again.
    """
    if scored.values is not None:
        return scored.values

    def of(part: Sequences, counts: Tensor) -> tuple[Tensor]:
        return (response_values(critic, part.tokens, part.prompt_lengths, counts),)

    (values,) = in_pieces(of, rows, scored.sequences, scored.mask)
    return values
