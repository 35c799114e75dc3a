"""How likely a language model finds given continuations of given contexts: what probes and zero-, one- and few-shot
evaluation are made of.

Rows are token ids, sorted by length into right-padded batches (a causal decoder needs no mask for that). Only the
positions that predict a continuation meet the head, a chunk of logits at a time.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gpt_modules.backbone import GPT
from gpt_modules.backbone.generation import inference
from gpt_modules.errors import UserError
from gpt_modules.functional import token_logprobs

Row = tuple[list[int], list[int]]

# Logits held at a time: products of some hundred rows run at full speed, and a batch has thousands.
_CPU_CHUNK_ELEMENTS = 2**22
_ACCELERATOR_CHUNK_ELEMENTS = 2**27


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


@torch.no_grad()
def continuation_logprobs(model: GPT, rows: Sequence[Row], max_tokens_a_batch: int = 8192) -> list[Score]:
    """The score of every (context, continuation), in the order of `rows`.

    After an empty context nothing predicts the continuation's first token, so that one is not scored; give the end
    token as context where it should be. A row longer than the model's context loses tokens at its left. Dropout is off
    meanwhile, and every module's mode is as before afterwards.

    Args:
        rows: Token ids.
        max_tokens_a_batch: Cells of a batch, padding included; a single longer row is a batch of its own.

    Raises:
        UserError: A continuation alone is longer than `n_positions`.
        ValueError: A continuation without a token to score.
    """
    lines = [_line(number, row, model.config.n_positions) for number, row in enumerate(rows)]
    scores: dict[int, Score] = {}
    with inference(model):
        for batch in _batches([line.width for line in lines], max_tokens_a_batch):
            scores.update(zip(batch, _score(model, [lines[i] for i in batch]), strict=True))
    return [scores[i] for i in range(len(lines))]


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


def _batches(widths: list[int], max_tokens: int) -> Iterator[list[int]]:
    """Row numbers, longest first: alike lengths together, and memory that runs out does so at once."""
    order = sorted(range(len(widths)), key=lambda i: -widths[i])
    while order:
        count = max(1, max_tokens // widths[order[0]])
        yield order[:count]
        order = order[count:]


def _score(model: GPT, lines: list[_Line]) -> list[Score]:
    device, width = model.head_weight.device, lines[0].width
    inputs = torch.tensor([line.tokens[:-1] + [0] * (width - line.width) for line in lines])
    ends = [row * width + line.width for row, line in enumerate(lines)]
    places = [torch.arange(end - line.scored, end) for end, line in zip(ends, lines, strict=True)]
    targets = torch.tensor([token for line in lines for token in line.tokens[-line.scored :]])
    hidden = model.hidden(inputs.to(device)).flatten(0, 1).index_select(0, torch.cat(places).to(device))
    found = [part.cpu() for part in _head(hidden, model.head_weight, targets.to(device))]  # waits for the device once
    by_row = zip(*(torch.split(part, [line.scored for line in lines]) for part in found), strict=True)
    return [Score(float(nats.double().sum()), len(nats), bool(best.all())) for nats, best in by_row]


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
