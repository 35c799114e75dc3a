"""Sampling from a language model: unequal prompts in one batch, tokens with the log-probabilities they were drawn with.

Keys and values are cached, only the last position meets the head, finished rows leave the batch, and two uniform
numbers decide a token. All of these are drawn at the start, row by row, so what a row says depends neither on when
another one finishes nor, with generators of the CPU, on how many rows follow it.

How one step is made, and made fast, is in `step.py`.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gpt_modules.backbone.decoding.kvcache import KVCache
from gpt_modules.backbone.decoding.step import (
    Advance,
    DecodeStep,
    SamplingRule,
    accelerated,
    can_capture,
    input_major,
    is_whole,
    lend_cast,
)
from gpt_modules.backbone.lora import lend_merged
from gpt_modules.backbone.masks import computed_in
from gpt_modules.backbone.models import GPT
from gpt_modules.errors import UserError

Prompts: TypeAlias = Sequence[Sequence[int]] | tuple[Tensor, Tensor]
Noise: TypeAlias = torch.Generator | Sequence[torch.Generator] | None
Ends: TypeAlias = int | Sequence[int] | None
"""The token that ends an answer, or several, each of which does."""

# Finished rows leave once they are this part of the batch: copying the cache more often costs more than it saves.
RETIRED_PART = 0.25
# With fewer steps to come, no CUDA graph of a smaller batch: to capture one the device comes to rest first.
STEPS_OF_A_CAPTURE = 64
# Asking a CUDA device whether rows are finished makes the host wait, so it is asked this often only.
CUDA_STEPS_BETWEEN_CHECKS = 8
# Numbers in a row of a mask that CUDA's attention reads as it is, a multiple of these; another one it copies to pad it.
ALIGNED = 8


class Generation(NamedTuple):
    """What `generate` returns, all (B, N) with N = `max_new_tokens`; cells after the end hold 0, 0.0 and False."""

    tokens: Int[Tensor, "B N"]
    logprobs: Float[Tensor, "B N"]
    """Of the chosen tokens under the tempered and filtered distribution they were drawn from; greedy: the model's."""
    mask: Bool[Tensor, "B N"]
    """True for the tokens generated, up to and including the end-of-text token."""


@torch.no_grad()
def generate(
    model: GPT,
    prompts: Prompts,
    *,
    max_new_tokens: int,
    eos_id: Ends,
    ends_after: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: Noise = None,
    compile: bool = False,
    cache_bytes: float = math.inf,
) -> Generation:
    """Continue each prompt by up to `max_new_tokens` tokens, or until it says `eos_id` (or one of them).

    Args:
        prompts: token ids, one sequence a row, or a pair (tokens (B, T), mask (B, T)) padded on either side.
        ends_after: an end among the first so many tokens of an answer is a token like others.
        temperature: divides the logits; 0 is greedy. `top_k` and `top_p` as of `filter_logits`.
        generator: the source of randomness; the same state gives the same tokens. Or one a row: then a row says the
            same in whatever batch it stands.
        compile: `torch.compile` the step: half a minute to start, so for long runs of one shape.
        cache_bytes: how much the keys and values of the rows at work may take, less than one row's counts as one row's.
            Rows beyond it wait their turn, the shorter prompts first; what a row says does not depend on that.

    Dropout is off meanwhile, whatever mode the model is in. Raises `UserError` for an empty prompt, a token outside the
    vocabulary, a prompt that with `max_new_tokens` exceeds `n_positions`, or a rule that is no distribution's.
    """
    rule = SamplingRule(temperature, top_k, top_p)
    rule.check()
    tokens, lengths = left_padded(prompts, model.head_weight.device)
    check_prompts(model, tokens, lengths, max_new_tokens)
    uniforms = _uniforms(len(lengths), max_new_tokens, generator, tokens.device)
    turns, ends = _turns(model, lengths, max_new_tokens, cache_bytes), ends_of(eos_id, tokens.device)
    with inference(model), lend_merged(model), lend_cast(model), input_major(model, max_new_tokens) as head:
        static = compile or can_capture(model)

        def turn(numbers: Int[Tensor, "K"]) -> Generation:
            own, rows = [lengths[row] for row in numbers.tolist()], numbers.to(tokens.device)
            part = tokens[rows, tokens.shape[1] - max(own) :]
            with without_graphs(model):
                cache = new_cache(model, len(own), max(own) + max_new_tokens, static)
                step = DecodeStep(model, cache, rule, head)
                written = _Transcript(len(uniforms), len(own), ends, ends_after)
                return _decode(step, part, real_tokens(part, own), uniforms[:, :, rows], written, compile)

        drawn = [turn(numbers) for numbers in turns]
    back = torch.cat(turns).argsort().to(tokens.device)
    return Generation(*(torch.cat(parts)[back] for parts in zip(*drawn, strict=True)))


def _turns(model: GPT, lengths: list[int], new_tokens: int, cache_bytes: float) -> list[Int[Tensor, "_"]]:
    """Row numbers of those that speak at once; all in one turn, and in their order, where there is room."""
    one = new_cache(model, 1, max(lengths) + new_tokens, static=False).nbytes
    most = max(1, int(min(cache_bytes / one, len(lengths))))
    if most == len(lengths):
        return [torch.arange(len(lengths))]
    order = torch.tensor(lengths).argsort(stable=True)
    return list(order.tensor_split(-(-len(lengths) // most)))


def noise_of(key: str) -> torch.Generator:
    """A generator of the CPU that is a function of `key`: a row's own, for `generate`."""
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) >> 1)


def ends_of(eos_id: Ends, device: torch.device) -> Int[Tensor, "E"]:
    """The tokens that end an answer; none: it goes on."""
    found = [] if eos_id is None else [eos_id] if isinstance(eos_id, int) else list(eos_id)
    return torch.tensor(found, dtype=torch.long, device=device)


def is_end(token: Int[Tensor, "*S"], ends: Int[Tensor, "E"]) -> Bool[Tensor, "*S"]:
    """True for the tokens that end an answer."""
    return (token[..., None] == ends).any(-1)


def left_padded(prompts: Prompts, device: torch.device) -> tuple[Int[Tensor, "B T"], list[int]]:
    """Prompts as one block (B, T) that ends with each row's last token, and their lengths. Padding holds id 0."""
    if isinstance(prompts, tuple) and len(prompts) == 2 and isinstance(prompts[0], Tensor):
        tokens, mask = (part.to(device) for part in prompts)
        # A stable sort of the mask moves padding to the front, wherever it stood, and keeps the order of the tokens.
        order = mask.to(torch.int8).argsort(dim=1, stable=True)
        lengths = mask.sum(1).tolist()
        tokens = tokens.masked_fill(~mask, 0).gather(1, order)[:, mask.shape[1] - max(lengths, default=0) :]
        return tokens.long(), lengths
    lengths = [len(prompt) for prompt in prompts]
    width = max(lengths, default=0)
    rows = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    return torch.tensor(rows, dtype=torch.long, device=device).view(len(rows), width), lengths


def real_tokens(tokens: Int[Tensor, "B T"], lengths: list[int]) -> Bool[Tensor, "B T"] | None:
    """True for the tokens of left-padded rows of these lengths; None where there is no padding."""
    if min(lengths) == max(lengths):
        return None
    starts = tokens.shape[1] - torch.tensor(lengths, device=tokens.device)
    return torch.arange(tokens.shape[1], device=tokens.device) >= starts[:, None]


def _uniforms(rows: int, steps: int, generator: Noise, device: torch.device) -> Float[Tensor, "N 2 B"]:
    """The numbers of a row are drawn together: with a generator of the CPU, whatever number of rows follows."""
    dtype = torch.float32 if device.type == "mps" else torch.float64  # Apple's devices have no float64
    if isinstance(generator, Sequence):
        if len(generator) != rows:
            raise ValueError(f"generator: found {len(generator)}, expected one, or one for each of {rows} prompts")
        drawn = [torch.rand(steps, 2, generator=one, dtype=dtype, device=one.device) for one in generator]
        uniforms = torch.stack(drawn).to(device)
    else:
        source = device if generator is None else generator.device
        uniforms = torch.rand(rows, steps, 2, generator=generator, dtype=dtype, device=source).to(device)
    return uniforms.permute(1, 2, 0).contiguous()


def check_prompts(model: GPT, tokens: Int[Tensor, "B T"], lengths: list[int], max_new_tokens: int) -> None:
    """Raises `UserError` for prompts that this model cannot continue by so many tokens."""
    limit, vocab_size = model.config.n_positions, model.config.vocab_size
    if not lengths:
        raise UserError("prompts: found none, expected at least one")
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens: found {max_new_tokens}, expected at least 1")
    for row, length in enumerate(lengths, start=1):
        if length == 0:
            raise UserError(f"prompt {row}: found no tokens, expected at least one")
        if length + max_new_tokens > limit:
            found = f"found {length} tokens and max_new_tokens = {max_new_tokens}"
            raise UserError(f"prompt {row}: {found}, expected at most n_positions = {limit} together")
    low, high = torch.stack(tokens.aminmax()).tolist()
    if low < 0 or high >= vocab_size:
        raise UserError(f"prompts: found token {low if low < 0 else high}, expected 0 to {vocab_size - 1}")


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Dropout off, blocks uncompiled (their graphs are of the training shapes), and everything as it was afterwards."""
    training = [module for module in model.modules() if module.training]
    compiled = {module: module._compiled_call_impl for module in model.modules() if module._compiled_call_impl}
    model.eval()
    for module in compiled:  # these alone: what is compiled within is another matter
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in compiled.items():
            module._compiled_call_impl = call
        for module in training:
            module.training = True
        # Autocast keeps its copies of the weights; those made here carry no gradient and must not be trained with.
        torch.clear_autocast_cache()


@contextmanager
def without_graphs(model: GPT) -> Iterator[None]:
    """A tenth off a step of a small model: nothing is noted that a graph might want. Not with sharded weights: they are
    gathered into memory that training reads later, which must not be made here. Nor under autocast, which then keeps no
    copies of weights and casts all of them at every token; where Lightning validates in this mode, it is left.
    """
    noted = not is_whole(model) or torch.is_autocast_enabled(model.head_weight.device.type)
    with torch.inference_mode(not noted), torch.no_grad():  # who leaves the mode has gradients again
        yield


def new_cache(model: GPT, batch: int, capacity: int, static: bool) -> KVCache:
    """An empty cache of the type that the model computes in, autocast considered; a static one of a multiple of
    `ALIGNED` slots: attention reads all of them at every token, and would copy a mask of another width in every layer.
    """
    weight = model.head_weight
    if static:
        capacity = -(-capacity // ALIGNED) * ALIGNED
    return KVCache(model.config, batch, capacity, device=weight.device, dtype=computed_in(weight), static=static)


def _decode(
    step: DecodeStep,
    tokens: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B T"] | None,
    uniforms: Float[Tensor, "N 2 B"],
    written: "_Transcript",
    compile: bool,
) -> Generation:
    interval = CUDA_STEPS_BETWEEN_CHECKS if tokens.is_cuda else 1
    token, logprob = step.prefill(tokens, mask, uniforms[0])
    advance: Advance | None = None
    for index in range(1, len(uniforms)):
        written.record(token, logprob)
        if len(written.ends) and index % interval == 0:
            survivors = written.survivors(_retired_part(step.model, compile, len(uniforms) - index))
            if survivors is not None and len(survivors) == 0:
                return written.result()
            if survivors is not None:
                step.cache.keep(survivors)
                token, uniforms, advance = token[survivors], uniforms[:, :, survivors], None
        advance = advance or accelerated(step, token, uniforms[index], compile)
        token, logprob = advance(token, uniforms[index])
    written.record(token, logprob)
    return written.result()


def _retired_part(model: GPT, compile: bool, left: int) -> float:
    """The part of the rows that leave together, where `left` steps follow; 1: all. Another batch size is compiled anew,
    which costs more than rows that say nothing, or captured anew, which costs as much as some steps do.
    """
    if compile:
        return 1.0
    return RETIRED_PART if not can_capture(model) else 0.5 if left >= STEPS_OF_A_CAPTURE else 1.0


class _Transcript:
    """What every row has said, (N, B), and which rows still speak.

    A row goes on behind its end until it leaves; what it says there is cut off in `result`.
    """

    def __init__(self, steps: int, rows: int, ends: Int[Tensor, "E"], ends_after: int) -> None:
        self.ends, self.ends_after = ends, ends_after
        self.tokens = torch.zeros(steps, rows, dtype=torch.long, device=ends.device)
        self.logprobs = torch.zeros(steps, rows, device=ends.device)
        self.rows = torch.arange(rows, device=ends.device)
        self.finished = torch.zeros_like(self.rows, dtype=torch.bool)
        self.steps = 0
        self._since: list[tuple[Tensor, Tensor]] = []  # steps of these rows that are still to be written

    def record(self, token: Int[Tensor, "B"], logprob: Float[Tensor, "B"]) -> None:
        """Note one step."""
        self._since.append((token, logprob))
        if len(self.ends) and self.steps >= self.ends_after:
            self.finished |= is_end(token, self.ends)
        self.steps += 1

    def survivors(self, part: float) -> Int[Tensor, "K"] | None:
        """Indices of the rows to go on with where this part of them has finished, else None. Waits for it."""
        finished = int(self.finished.sum())
        if finished < max(1, part * len(self.rows)):
            return None
        self._write()
        survivors = (~self.finished).nonzero()[:, 0]
        self.rows, self.finished = self.rows[survivors], self.finished[survivors]
        return survivors

    def _write(self) -> None:
        if not self._since:
            return
        places = slice(self.steps - len(self._since), self.steps)
        for whole, parts in zip((self.tokens, self.logprobs), zip(*self._since, strict=True), strict=True):
            whole[places, self.rows] = torch.stack(parts).to(whole.dtype)
        self._since = []

    def result(self) -> Generation:
        self._write()
        ends = is_end(self.tokens, self.ends)
        ends[: self.ends_after] = False
        mask = (ends.cumsum(0) - ends.long() == 0).t()
        return Generation(self.tokens.t() * mask, self.logprobs.t().masked_fill(~mask, 0.0), mask)
