"""Continuous batching: rows join a running batch and leave it, each with its own prompt, rule, noise and end.

A turn reads a piece of the prompts that are still to be read and takes one step with all rows that speak (Yu et al.
2022, "Orca", section 3.1; prompts in pieces between the steps: Agrawal et al. 2024, "Sarathi-Serve", section 4).

What a row says is a function of its prompt, rule and noise alone. Its prompt is read in pieces that start at multiples
of `PIECE`, alone; it attends alone (`apart.py`); its draws are its own. What is left are the products with the weights,
which a library may sum in another order for another number of rows: `fitting_rows` finds a multiple of rows, to which
a batch is filled up, from which on this machine does not.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gpt_modules.backbone.decoding.apart import RowCaches
from gpt_modules.backbone.decoding.kvcache import KVCache
from gpt_modules.backbone.decoding.step import SamplingRule, bare_hidden, choose
from gpt_modules.backbone.models import GPT
from gpt_modules.errors import UserError

PIECE = 64  # tokens of prompts that are read between two steps
MULTIPLES = (4, 8, 16)


class Likely(NamedTuple):
    """A token and its log-probability under the model itself, whatever rule it was drawn by, and the likeliest ones."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Said(NamedTuple):
    """What a turn gave a row: the next token, or None with the prompt's log-probabilities where it says nothing more.

    end: "stop" with an end token, "length" with the last token that was asked for.
    """

    row: "Row"
    token: int | None
    likely: Likely | None
    end: str | None


@dataclass(eq=False)
class Row:
    """A prompt to continue.

    Args:
        most: tokens to say, 0 to only read the prompt.
        noise: a generator of the CPU, the row's own; None for greedy rules.
        ends: tokens that end it.
        top: of how many of the likeliest tokens log-probabilities are told; None: of no token at all.
        echo: the prompt's log-probabilities are told too, in `prompt_likely`; the first token has none.
    """

    prompt: list[int]
    most: int
    rule: SamplingRule = field(default_factory=SamplingRule)
    noise: torch.Generator | None = None
    ends: frozenset[int] = frozenset()
    top: int | None = None
    echo: bool = False
    prompt_likely: list[Likely] = field(default_factory=list)

    def check(self, model: GPT) -> None:
        """Raises `UserError` for what this model cannot continue."""
        self.rule.check()
        limit, length = model.config.n_positions, len(self.prompt)
        if not length:
            raise UserError("prompt: found no tokens, expected at least one")
        if length + self.most > limit:
            raise UserError(f"prompt: found {length} tokens and {self.most} to say, expected at most {limit} together")
        low, high = min(self.prompt), max(self.prompt)
        if low < 0 or high >= model.config.vocab_size:
            found = low if low < 0 else high
            raise UserError(f"prompt: found token {found}, expected 0 to {model.config.vocab_size - 1}")


class _Seat:
    """A row at work: its cache, what it has read of its prompt, its draws and its last token."""

    def __init__(self, row: Row, model: GPT) -> None:
        self.row, self.cache, self.read, self.said, self.last = row, _cache_of(row, model), 0, 0, 0
        # As `generate` draws those of a row: all at the start, so that a row says the same there and here.
        self.draws = torch.rand(row.most, 2, generator=row.noise, dtype=torch.float64).tolist()

    @property
    def speaks(self) -> bool:
        return self.read == len(self.row.prompt)


class Batch:
    """Rows at work on one model, which must not learn meanwhile. One thread calls it.

    Args:
        most: rows at once.
        cache_bytes: what their keys and values may take together; a row has room for its whole answer from the start.
        multiple: rows are filled up to a multiple of it, as of `fitting_rows`.
    """

    def __init__(self, model: GPT, most: int = 16, cache_bytes: float = math.inf, multiple: int = 1) -> None:
        self.model, self.most, self.cache_bytes, self.multiple = model.eval(), most, cache_bytes, multiple
        self._hidden = bare_hidden(self.model)
        self._seats: dict[Row, _Seat] = {}
        self.held_bytes = 0

    def __len__(self) -> int:
        return len(self._seats)

    def has_room(self, row: Row) -> bool:
        """Whether it can join now; a row that is larger than all there is may join an empty batch."""
        fits = self.held_bytes + bytes_of(row, self.model) <= self.cache_bytes
        return not self._seats or (len(self._seats) < self.most and fits)

    def join(self, row: Row) -> None:
        """A row begins with the next turn."""
        row.check(self.model)
        self._seats[row] = _Seat(row, self.model)
        self.held_bytes += self._seats[row].cache.nbytes

    def leave(self, row: Row) -> None:
        """A row says no more; nothing happens where it has left."""
        if (seat := self._seats.pop(row, None)) is not None:
            self.held_bytes -= seat.cache.nbytes

    @torch.inference_mode()
    def turn(self) -> list[Said]:
        """Read a piece of prompts, take a step with those that speak. Rows that came to their end have left."""
        speaking = [seat for seat in self._seats.values() if seat.speaks]
        found = [said for seat in self._to_read() for said in self._read(seat)]
        for some in _chunks(speaking, self.most):
            found += self._step(some)
        for said in found:
            if said.end is not None:
                self.leave(said.row)
        return found

    def _to_read(self) -> Iterator[_Seat]:
        """Those whose prompts are read in this turn, the first come first, up to `PIECE` tokens or one of them."""
        room = PIECE
        for seat in self._seats.values():
            while not seat.speaks and room > 0:
                room -= min(PIECE, len(seat.row.prompt) - seat.read)
                yield seat

    def _read(self, seat: _Seat) -> list[Said]:
        """The next piece of a prompt; after the last one, the first token."""
        row, start = seat.row, seat.read
        seat.read = min(start + PIECE, len(row.prompt))
        tokens = torch.tensor([row.prompt[start : seat.read]], device=self.model.head_weight.device)
        hidden = self._hidden(tokens, cache=seat.cache)
        if row.echo:
            if start == 0:
                row.prompt_likely.append(Likely(row.prompt[0], math.nan, ()))
            following = row.prompt[start + 1 : seat.read + 1]
            logits = F.linear(hidden[0, : len(following)], self.model.head_weight)
            row.prompt_likely += _likely(logits, following, row.top or 0)
        if not seat.speaks:
            return []
        if row.most == 0:
            return [Said(row, None, None, "length")]
        return self._chosen([seat], F.linear(hidden[:, -1], self.model.head_weight))

    def _step(self, seats: Sequence[_Seat]) -> list[Said]:
        blank = -len(seats) % self.multiple
        last = [*(seat.last for seat in seats), *[0] * blank]
        tokens = torch.tensor(last, device=self.model.head_weight.device)[:, None]
        caches = RowCaches([seat.cache for seat in seats], blank)
        hidden = self._hidden(tokens, cache=caches)[:, 0]
        return self._chosen(seats, F.linear(hidden, self.model.head_weight)[: len(seats)])

    def _chosen(self, seats: Sequence[_Seat], logits: Float[Tensor, "B V"]) -> list[Said]:
        """The next token of each row; rows of one rule are drawn together, which changes none of them."""
        found: list[Said] = []
        places = sorted(range(len(seats)), key=lambda i: _key(seats[i].row.rule))
        for _, group in groupby(places, key=lambda i: _key(seats[i].row.rule)):
            some = list(group)
            own = logits if len(some) == len(seats) == 1 else logits[some]
            rule = seats[some[0]].row.rule
            drawn = choose(own, _uniform([seats[i] for i in some], logits.device), rule)[0].tolist()
            for i, token in zip(some, drawn, strict=True):
                found.append(_note(seats[i], token, logits[i : i + 1]))
        return found


def _note(seat: _Seat, token: int, logits: Float[Tensor, "1 V"]) -> Said:
    row = seat.row
    seat.last, seat.said = token, seat.said + 1
    likely = None if row.top is None else _likely(logits, [token], row.top)[0]
    end = "stop" if token in row.ends else "length" if seat.said == row.most else None
    return Said(row, token, likely, end)


def _likely(logits: Float[Tensor, "N V"], tokens: list[int], top: int) -> list[Likely]:
    logprobs = logits.float().log_softmax(-1)
    chosen = logprobs.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    best = logprobs.topk(min(top, logprobs.shape[1]), dim=1)
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [
        Likely(token, logprob, tuple(zip(ids, values, strict=True)))
        for token, logprob, (ids, values) in zip(tokens, chosen, pairs, strict=True)
    ]


def _uniform(seats: Sequence[_Seat], device: torch.device) -> Float[Tensor, "2 B"]:
    draws = [seat.draws[seat.said] for seat in seats]
    return torch.tensor(draws, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device).t()


def _key(rule: SamplingRule) -> tuple[float, int, float]:
    return rule.temperature, rule.top_k or 0, rule.top_p or 0.0


def _chunks(seats: Sequence[_Seat], most: int) -> Iterator[Sequence[_Seat]]:
    return (seats[start : start + most] for start in range(0, len(seats), most))


def _cache_of(row: Row, model: GPT, device: torch.device | None = None) -> KVCache:
    """Keys and values of the last token said are never read."""
    weight = model.head_weight
    room = len(row.prompt) + max(0, row.most - 1)
    return KVCache(model.config, 1, room, device=device or weight.device, dtype=weight.dtype)


def bytes_of(row: Row, model: GPT) -> int:
    """What a row's keys and values take."""
    return _cache_of(row, model, torch.device("meta")).nbytes


@torch.no_grad()
def fitting_rows(model: GPT, most: int) -> int:
    """The smallest multiple of rows to which batches of up to `most` rows are filled up, so that a row's numbers are
    the same in each of them, here: of this model, on this device, with this many threads.

    Measured, row for row and bit for bit, on random tokens: a library chooses how to sum by shape, not by value. A
    batch that is always full is the last resort, whose shape never changes.
    """
    generator = torch.Generator().manual_seed(0)
    for multiple in (size for size in MULTIPLES if size < most):
        count = -(-most // multiple) * multiple
        tokens = torch.randint(model.config.vocab_size, (count, 1), generator=generator)
        whole = _one_step(model, tokens)
        fewer = (
            torch.equal(_one_step(model, tokens[:size]), whole[:size]) for size in range(multiple, count, multiple)
        )
        if all(fewer) and torch.equal(_one_step(model, tokens.flip(0)).flip(0), whole):
            return multiple
    return most


def _one_step(model: GPT, tokens: Int[Tensor, "B 1"]) -> Float[Tensor, "B V"]:
    caches = RowCaches([_cache_of(Row([0], 1), model) for _ in tokens])
    return F.linear(model.hidden(tokens.to(model.head_weight.device), cache=caches)[:, 0], model.head_weight)
