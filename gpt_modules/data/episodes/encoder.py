"""Episodes of text as tensors: one example a row for a language model or a classifier to adapt on by gradient, or the
whole support set in the row of a query to be read in context.

A row begins as every sequence of the model's family does. Prompt, response and the line break between examples are
encoded apart and joined, so that an example has the same tokens wherever it stands. A response is learned, and in
episodes nothing closes it: what is asked for is known to end.
"""

import logging
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from gpt_modules.data.batches import IGNORE, EpisodeBatch, EpisodeSet
from gpt_modules.data.collate import join_row, pad_right
from gpt_modules.data.episodes.families import Episode, Example
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError

SEPARATOR = "\n"  # between the examples of a row
KNOWN_TEXTS = 100_000  # some ten megabytes
CUT = "a prompt is cut to the context of %d tokens; others may be, too"
LEFT_OUT = "the context of %d tokens has no room for all examples of a row: the first ones are left out"
log = logging.getLogger(__name__)

Piece = tuple[list[int], bool]


class InContextSet(NamedTuple):
    """N tasks of Q queries, each in one row behind the support set. rows: targets on the query's response only.
    shown (N, Q): support examples that fitted into the row.
    """

    rows: EpisodeSet
    shown: Int[Tensor, "N Q"]


class EncodedExample(NamedTuple):
    """The tokens of an example, and where it has one its class."""

    prompt: list[int]
    response: list[int]
    label: int | None


class EpisodeEncoder:
    """Episodes of text to the batches of one model.

    A prompt that is too long for the context loses its beginning, since what asks for the response stands at its end;
    for a classifier it loses its end, as in fine-tuning. That, and that a row in context has no room for all examples,
    is logged the first time.

    Args:
        tokenizer: With task tokens, for a classifier.
        context: Tokens of the longest row.
        classifies: Rows are [start] prompt [extract] and targets classes; else prompt and response, and next tokens.
        closed: A learned end token closes each response, as in SFT.
    """

    def __init__(self, tokenizer: Tokenizer, context: int, classifies: bool = False, closed: bool = False) -> None:
        self.tokenizer, self.context, self.classifies = tokenizer, context, classifies
        self._end = [tokenizer.eos_id] if closed and not classifies else []
        self._begin: Piece = (tokenizer.begin, False)
        self._separator = tokenizer.within.encode(SEPARATOR)
        self._known: dict[tuple[str, bool], list[int]] = {}
        self._warned: set[str] = set()

    def encode(self, episodes: Sequence[Episode]) -> EpisodeBatch:
        """Both sets of all episodes, one example a row, each set padded to its longest.

        Raises:
            UserError: A response does not fit the context, a prompt or a response is empty, or a classifier's example
                has no class.
        """
        encoded = self._tokens(episodes)
        make = self._classes if self.classifies else self._next_tokens
        return EpisodeBatch(make([support for support, _ in encoded]), make([query for _, query in encoded]))

    def encode_in_context(self, episodes: Sequence[Episode]) -> InContextSet:
        """One row a query: the support examples in order, then the query, whose response is the target. Where not all
        fit, the first ones are left out.

        Raises:
            UserError: As `encode`.
        """
        rows, shown = list[list[Piece]](), list[int]()
        for support, query in self._tokens(episodes):
            sizes = self._sizes(support)
            for example in query:
                last = self._fitted(example)
                kept = self._that_fit(sizes, last)
                rows.append([self._begin, *self._before(support[len(support) - kept :], learned=False), *last])
                shown.append(kept)
        count = len(episodes)
        return InContextSet(_token_set(rows, count), torch.tensor(shown, dtype=torch.int64).view(count, -1))

    def encode_in_one_row(self, episodes: Sequence[Episode]) -> EpisodeSet:
        """One row a task: support and query examples in order, every response a target (as in MetaICL, Min et al.
        2022, section 3.1, where the last one is). Where not all fit, the first ones are left out.

        Raises:
            UserError: As `encode`.
        """
        rows = list[list[Piece]]()
        for support, query in self._tokens(episodes):
            *before, final = support + query
            last = self._fitted(final)
            kept = self._that_fit(self._sizes(before), last)
            rows.append([self._begin, *self._before(before[len(before) - kept :], learned=True), *last])
        return _token_set(rows, len(episodes))

    def _tokens(self, episodes: Sequence[Episode]) -> list[tuple[list[EncodedExample], list[EncodedExample]]]:
        ids = self._ids_of(episodes)

        def encoded(examples: list[Example]) -> list[EncodedExample]:
            return [EncodedExample(ids[x.prompt, False], ids[x.response, True] + self._end, x.label) for x in examples]

        return [(encoded(episode.support), encoded(episode.query)) for episode in episodes]

    def _ids_of(self, episodes: Sequence[Episode]) -> dict[tuple[str, bool], list[int]]:
        """The tokens of every (text, whether it goes on a prompt); what has been encoded lately is not encoded again:
        labels and reviews come back.
        """
        examples = [*chain.from_iterable(chain(episode.support, episode.query) for episode in episodes)]
        if len(self._known) > KNOWN_TEXTS:
            self._known.clear()
        for responds, tokenizer in ((False, self.tokenizer), (True, self.tokenizer.within)):
            texts = dict.fromkeys(example.response if responds else example.prompt for example in examples)
            new = [text for text in texts if (text, responds) not in self._known]
            ids = tokenizer.encode_batch(new)
            self._known.update(((text, responds), of) for text, of in zip(new, ids, strict=True))
        return self._known

    def _next_tokens(self, tasks: Sequence[list[EncodedExample]]) -> EpisodeSet:
        return _token_set([[self._begin, *self._fitted(example)] for task in tasks for example in task], len(tasks))

    def _classes(self, tasks: Sequence[list[EncodedExample]]) -> EpisodeSet:
        room = self.context - 2 - len(self.tokenizer.begin)
        examples = list(chain.from_iterable(tasks))
        if any(len(example.prompt) > room for example in examples):
            self._warn(CUT)
        rows = [
            join_row([example.prompt[:room]], self.tokenizer.task_ids, self.tokenizer.begin) for example in examples
        ]
        labels = [_label(example) for example in examples]
        shape = (len(tasks), len(examples) // max(1, len(tasks)))
        index = torch.arange(shape[1]).expand(shape)[..., None].contiguous()
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64).view(shape)
        targets = torch.tensor(labels, dtype=torch.int64).view(shape)
        tokens = pad_right(rows)
        return EpisodeSet((tokens.view(*shape, tokens.shape[1]), lengths, index), targets)

    def _fitted(self, example: EncodedExample) -> list[Piece]:
        """Prompt and response in at most `context` + 1 tokens, which have `context` inputs."""
        prompt, response, _ = example
        room = self.context + 1 - len(response) - len(self.tokenizer.begin)
        if not prompt or not response or room < 1:
            decode = self.tokenizer.decode
            raise UserError(
                f"context: found a prompt of {len(prompt)} tokens ({decode(prompt)[:40]!r}) and a response of "
                f"{len(response)} ({decode(response)[:40]!r}), expected both, the response of at most {self.context}"
            )
        if len(prompt) > room:
            self._warn(CUT)
        return [(prompt[-room:], False), (response, True)]

    def _before(self, examples: Sequence[EncodedExample], learned: bool) -> list[Piece]:
        triples = [[(x.prompt, False), (x.response, learned), (self._separator, False)] for x in examples]
        return list(chain.from_iterable(triples))

    def _sizes(self, examples: Sequence[EncodedExample]) -> NDArray[np.int64]:
        """Tokens of the last example, of the last two, ..., with their separators."""
        sizes = [len(example.prompt) + len(example.response) + len(self._separator) for example in reversed(examples)]
        return np.cumsum(sizes, dtype=np.int64)

    def _that_fit(self, sizes: NDArray[np.int64], last: list[Piece]) -> int:
        room = self.context + 1 - sum(len(ids) for ids, _ in [self._begin, *last])
        kept = int(np.searchsorted(sizes, room, side="right"))
        if kept < len(sizes):
            self._warn(LEFT_OUT)
        return kept

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            log.warning(message, self.context)
            self._warned.add(message)


def _label(example: EncodedExample) -> int:
    if example.label is None:
        raise UserError("objective: found classification and an example without a class, expected one")
    return example.label


def _token_set(rows: Sequence[list[Piece]], tasks: int) -> EpisodeSet:
    """Rows of (tokens, learned) pieces, the same number for each task, as inputs and next tokens (N, K, T)."""
    inputs, targets = _next_token_arrays(rows)
    shape = (tasks, len(rows) // max(1, tasks), inputs.shape[1])
    return EpisodeSet((torch.from_numpy(inputs).view(shape),), torch.from_numpy(targets).view(shape))


def _next_token_arrays(rows: Sequence[list[Piece]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(inputs, targets), right-padded, without a loop over rows: an episode has hundreds of short ones."""
    pieces = list(chain.from_iterable(rows))
    sizes = np.array([len(ids) for ids, _ in pieces], dtype=np.int64)
    owner = np.repeat(np.arange(len(rows)), np.array([len(row) for row in rows], dtype=np.int64))
    lengths = np.bincount(owner, weights=sizes, minlength=len(rows)).astype(np.int64)
    filled = np.arange(lengths.max(initial=1)) < lengths[:, None]
    tokens, learned = np.zeros(filled.shape, dtype=np.int64), np.zeros(filled.shape, dtype=np.bool_)
    tokens[filled] = np.fromiter(chain.from_iterable(ids for ids, _ in pieces), dtype=np.int64)
    learned[filled] = np.repeat(np.array([is_learned for _, is_learned in pieces], dtype=np.bool_), sizes)
    # The last token of a row is only ever a target.
    return np.where(filled[:, 1:], tokens[:, :-1], 0), np.where(learned[:, 1:], tokens[:, 1:], IGNORE)
