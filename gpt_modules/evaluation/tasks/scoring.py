"""How likely a language model finds given continuations of given contexts: what probes and zero-, one- and few-shot
evaluation are made of.

Rows are token ids. What rows begin with in common (demonstrations, the text before several answers) is read once and
its keys and values are forked, where that pays (`prefixes`); the rest is sorted by length into right-padded batches (a
causal decoder needs no mask for that). Only the positions that predict a continuation meet the head, a chunk of logits
at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gpt_modules.backbone import GPT, KVCache
from gpt_modules.backbone.decoding.generation import inference
from gpt_modules.errors import UserError
from gpt_modules.evaluation.tasks.prefixes import Branch, Strand, plan
from gpt_modules.functional import token_logprobs

Row = tuple[list[int], list[int]]
Progress = Callable[[float], object]
"""Called now and then with the part of the work that is done, 0 to 1."""

# Logits held at a time: products of some hundred rows run at full speed, and a batch has thousands.
_CPU_CHUNK_ELEMENTS = 2**22
_ACCELERATOR_CHUNK_ELEMENTS = 2**27
# Tokens that a call of the model costs as much as, however few it reads. An accelerator is idle below some thousands.
_CPU_OVERHEAD = 32
_ACCELERATOR_OVERHEAD = 4096


class Score(NamedTuple):
    """What a model thinks of one continuation.

    logprob: log-probability in nats, summed over its tokens. tokens: how many, at least 1. greedy: every one of them
    was the model's most likely next token.
    """

    logprob: float
    tokens: int
    greedy: bool

    @property
    def mean(self) -> float:
        """Nats a token."""
        return self.logprob / self.tokens


class _Line(NamedTuple):
    """A row as the model reads it: `tokens`, of which the last `scored` are predicted."""

    tokens: list[int]
    scored: int

    @property
    def width(self) -> int:
        return len(self.tokens) - 1  # the last token is only ever a target


class _Beginning(NamedTuple):
    """What some rows begin with, once read: its hidden states (D, C), its keys and values (none where D is 0), and the
    tokens in all caches that are held for it.
    """

    hidden: Float[Tensor, "D C"]
    cache: KVCache | None
    held: int


@torch.no_grad()
def continuation_logprobs(
    model: GPT, rows: Sequence[Row], max_tokens_a_batch: int = 8192, progress: Progress | None = None
) -> list[Score]:
    """The score of every (context, continuation), in the order of `rows`.

    After an empty context nothing predicts the continuation's first token, so that one is not scored; give the end
    token as context where it should be. A row longer than the model's context loses tokens at its left. Dropout is off
    meanwhile, and every module's mode is as before afterwards.

    Args:
        rows: Token ids.
        max_tokens_a_batch: Tokens held at a time, padding and cached beginnings included; a single longer row is a
            batch of its own.
        progress: Told after each batch.

    Raises:
        UserError: A continuation alone is longer than `n_positions`.
        ValueError: A continuation without a token to score.
    """
    lines = [_line(number, row, model.config.n_positions) for number, row in enumerate(rows)]
    weight = model.head_weight
    tree = plan([line.tokens[:-1] for line in lines], _overhead(weight.device), max_tokens_a_batch // 2)
    with inference(model):
        start = _Beginning(weight.new_empty(0, weight.shape[1]), None, 0)
        scores: dict[int, Score] = {}
        for found in _read(model, lines, tree, start, max_tokens_a_batch):
            scores |= found
            if progress is not None:
                progress(len(scores) / len(lines))
    return [scores[i] for i in range(len(lines))]


def _overhead(device: torch.device) -> int:
    return _CPU_OVERHEAD if device.type == "cpu" else _ACCELERATOR_OVERHEAD


def _line(number: int, row: Row, n_positions: int) -> _Line:
    context, continuation = row
    scored = len(continuation) if context else len(continuation) - 1
    if scored < 1:
        raise ValueError(f"row {number}: found a continuation without a token to score, expected at least one")
    if scored > n_positions:
        raise UserError(
            f"row {number}: found a continuation of {len(continuation)} tokens, "
            f"expected at most n_positions = {n_positions}"
        )
    return _Line([*context, *continuation][-n_positions - 1 :], scored)


def _read(
    model: GPT, lines: list[_Line], branch: Branch, start: _Beginning, max_tokens: int
) -> Iterator[dict[int, Score]]:
    """Row number -> score of everything below `branch`, whose beginning is `start`, batch by batch."""
    for batch in _batches(branch.strands, max_tokens - start.held, _overhead(model.head_weight.device)):
        yield dict(_score(model, lines, batch, start))
    for longer in branch.branches:
        tokens = lines[longer.row].tokens[branch.depth : longer.depth]
        yield from _read(model, lines, longer, _go_on(model, tokens, start), max_tokens)


def _go_on(model: GPT, tokens: list[int], start: _Beginning) -> _Beginning:
    weight, depth = model.head_weight, len(start.hidden) + len(tokens)
    if start.cache is None:
        kind = weight.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        cache = KVCache(model.config, 1, depth, device=weight.device, dtype=dtype)
    else:
        cache = start.cache.fork(1, len(tokens))
    hidden = model.hidden(torch.tensor([tokens], device=weight.device), cache=cache)[0]
    return _Beginning(torch.cat([start.hidden.to(hidden.dtype), hidden]), cache, start.held + depth)


def _batches(strands: list[Strand], max_tokens: int, max_padding: int) -> Iterator[list[Strand]]:
    """Longest first: alike lengths together, and memory that runs out does so at once.

    A batch ends where padding would cost more than another batch does.
    """
    batch: list[Strand] = []
    padding = 0
    for strand in sorted(strands, key=lambda strand: -strand.length):
        width = batch[0].length if batch else strand.length
        padding += width - strand.length
        if batch and ((len(batch) + 1) * width > max_tokens or padding > max_padding):
            yield batch
            batch, padding = [], 0
        batch.append(strand)
    if batch:
        yield batch


def _score(model: GPT, lines: list[_Line], batch: list[Strand], start: _Beginning) -> Iterator[tuple[int, Score]]:
    device, depth, width = model.head_weight.device, len(start.hidden), batch[0].length - len(start.hidden)
    inputs = [lines[strand.rows[0]].tokens[depth:-1] for strand in batch]
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in inputs])
    cache = None if start.cache is None else start.cache.fork(len(batch))
    hidden = torch.cat([start.hidden, model.hidden(tokens.to(device), cache=cache).flatten(0, 1)])
    read = [(row, lines[row], place * width) for place, strand in enumerate(batch) for row in strand.rows]
    places = torch.cat([_places(line, depth, offset) for _, line, offset in read])
    targets = torch.tensor([token for _, line, _ in read for token in line.tokens[-line.scored :]])
    found = _head(hidden.index_select(0, places.to(device)), model.head_weight, targets.to(device))
    sizes = [line.scored for _, line, _ in read]
    by_row = (torch.split(part.cpu(), sizes) for part in found)  # waits for the device
    for (row, _, _), nats, best in zip(read, *by_row, strict=True):
        yield row, Score(float(nats.double().sum()), len(nats), bool(best.all()))


def _places(line: _Line, depth: int, offset: int) -> Int[Tensor, " N"]:
    """Where the states that predict a line stand: the beginning's `depth` come first, then one strand after another."""
    positions = torch.arange(line.width - line.scored, line.width)
    return torch.where(positions < depth, positions, positions + offset)


def _head(
    hidden: Float[Tensor, "N C"], weight: Float[Tensor, "V C"], targets: Int[Tensor, " N"]
) -> tuple[Float[Tensor, " N"], Bool[Tensor, " N"]]:
    """Log-probability of each target, and whether no other token has a larger one."""
    elements = _CPU_CHUNK_ELEMENTS if hidden.device.type == "cpu" else _ACCELERATOR_CHUNK_ELEMENTS
    chunk = max(1, elements // len(weight))
    logprobs, best = [], []
    for states, tokens in zip(torch.split(hidden, chunk), torch.split(targets, chunk), strict=True):
        logits = F.linear(states, weight)
        logprobs.append(token_logprobs(logits, tokens))
        best.append(logits.argmax(-1) == tokens)
    return torch.cat(logprobs), torch.cat(best)
