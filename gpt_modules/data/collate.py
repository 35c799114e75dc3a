"""All padding, truncation, packing and masking of the data: from ragged token arrays to the batches of `batches`.

Examples are numpy arrays until here; every function is pure. A batch of no examples (a rank with nothing left to
validate) has one row of padding, so that a model can run on it. A prompt is never learned, an answer is, and so is the
end token that closes it. Labels stand where the model predicts them: `labels[t]` is the token after `inputs[t]`.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from gpt_modules.data.batches import IGNORE, LabelledBatch, PackedBatch, PromptBatch, RankingBatch, TokenBatch

IntArray = NDArray[np.int64]


class TokenExample(NamedTuple):
    """One text as tokens: `learned[i]` says whether token i is to be predicted (answers and their end) or only read
    (prompts).
    """

    tokens: IntArray
    learned: NDArray[np.bool_]

    @property
    def cells(self) -> int:
        """Cells of a row that the example takes: the last token is only ever a target."""
        return len(self.tokens) - 1


class TaskExample(NamedTuple):
    """A labelled example: its rows, each [start] ... [extract], and its class, answer or number (None: not known)."""

    rows: list[IntArray]
    label: float | None


class RankedAnswers(NamedTuple):
    """The answers to one prompt, each as prompt + answer + eos, and their ranks (lower is better); the labeler's scores
    of them (0: none), the number of the labeler and the round (-1: not known); tokens of the prompt, and the places of
    the answers among all of the data.
    """

    answers: list[IntArray]
    ranks: list[int]
    scores: Sequence[int] = ()
    labeler: int = -1
    round: int = -1
    prompt_length: int = 0
    numbers: Sequence[int] = ()


def make_example(turns: Sequence[tuple[Sequence[int], bool]], eos_id: int) -> TokenExample:
    """Joins (token ids, learned) turns; every learned turn is closed by a learned eos."""
    tokens: list[int] = []
    learned: list[bool] = []
    for ids, is_learned in turns:
        closed = [*ids, eos_id] if is_learned else list(ids)
        tokens += closed
        learned += [is_learned] * len(closed)
    return TokenExample(np.array(tokens, dtype=np.int64), np.array(learned, dtype=np.bool_))


def truncate_example(example: TokenExample, context: int) -> TokenExample | None:
    """The first `context` + 1 tokens (that many have `context` inputs); None if nothing to learn is left.

    A cut answer keeps no eos: the model is not taught to stop where the text did not.
    """
    cut = TokenExample(example.tokens[: context + 1], example.learned[: context + 1])
    return cut if cut.learned[1:].any() else None


def next_token_labels(example: TokenExample) -> tuple[IntArray, IntArray]:
    """(inputs, labels), both (n - 1,): labels[t] is token t + 1 where it is learned, else -100."""
    targets = np.where(example.learned[1:], example.tokens[1:], IGNORE)
    return example.tokens[:-1], targets


def pad_right(rows: Sequence[IntArray], length: int | None = None, fill: int = 0) -> Int[Tensor, "B T"]:
    """Stacks ragged rows, filling up on the right to the longest, or to `length` where given.

    Raises:
        ValueError: A row is longer than `length`.
    """
    width = max((len(row) for row in rows), default=0)
    if length is not None and width > length:
        raise ValueError(f"found a row of {width} tokens, expected at most {length}")
    padded = np.full((len(rows), width if length is None else length), fill, dtype=np.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return torch.from_numpy(padded)


def pack_examples(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Groups examples into rows of at most `capacity` cells: longest first, each into the fullest row that has room.

    Best-fit decreasing: at most 11/9 of the fewest rows possible (Johnson et al. 1974), and at least half full but
    for one row. A pure function of `lengths`; O(n log n) searches.

    Returns:
        For every row the indices of its examples.

    Raises:
        ValueError: An example is longer than a row.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free cells, row), sorted
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        need = lengths[index]
        if not 0 < need <= capacity:
            raise ValueError(f"example {index}: found {need} cells, expected 1 to {capacity}")
        slot = bisect_left(room, (need, -1))
        free, row = room.pop(slot) if slot < len(room) else (capacity, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(index)
        if free > need:
            insort(room, (free - need, row))
    return rows


def collate_tokens(examples: Sequence[TokenExample], length: int | None = None) -> TokenBatch:
    """One example a row; of none, a row of one token that teaches nothing."""
    pairs = [next_token_labels(example) for example in examples] or [(np.zeros(1, dtype=np.int64), np.full(1, IGNORE))]
    inputs = pad_right([inputs for inputs, _ in pairs], length)
    return TokenBatch(inputs, pad_right([labels for _, labels in pairs], length, fill=IGNORE))


def collate_packed(rows: Sequence[Sequence[TokenExample]], context: int) -> PackedBatch:
    """Several examples a row, `context` cells wide; positions and segments as `PackedBatch` says. Of no rows, one that
    is empty.
    """
    batch = [_pack_row(row) for row in rows or [[]]]
    inputs, labels, positions, segments = ([row[i] for row in batch] for i in range(4))
    return PackedBatch(
        pad_right(inputs, context),
        pad_right(labels, context, fill=IGNORE),
        pad_right(positions, context),
        pad_right(segments, context),
    )


def _pack_row(row: Sequence[TokenExample]) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    pairs = [next_token_labels(example) for example in row]
    nothing = np.zeros(0, dtype=np.int64)
    return (
        np.concatenate([nothing, *(inputs for inputs, _ in pairs)]),
        np.concatenate([nothing, *(labels for _, labels in pairs)]),
        np.concatenate([nothing, *(np.arange(example.cells) for example in row)]),
        np.concatenate([nothing, *(np.full(example.cells, i) for i, example in enumerate(row, start=1))]),
    )


def collate_windows(windows: Sequence[IntArray], context: int) -> TokenBatch:
    """Windows of running text, each up to `context` + 1 tokens; what a shorter one lacks is padding with labels
    -100. Of none, a window that is all padding.
    """
    windows = windows or [np.zeros(1, dtype=np.int64)]
    inputs = pad_right([window[:-1] for window in windows], context)
    return TokenBatch(inputs, pad_right([window[1:] for window in windows], context, fill=IGNORE))


def isolate_documents(batch: TokenBatch, start_id: int) -> PackedBatch:
    """The same windows, in which no token sees beyond its own document: `start_id`, a begin token or the end token of
    the one before, opens a document, and positions restart with it. Padding at the end of a window belongs to the last
    document, where nothing counts it.
    """
    opens = batch.inputs == start_id
    columns = torch.arange(batch.inputs.shape[1]).expand_as(batch.inputs)
    start = torch.where(opens, columns, 0).cummax(1).values
    return PackedBatch(batch.inputs, batch.labels, columns - start, opens.cumsum(1) + 1)


def collate_rankings(prompts: Sequence[RankedAnswers]) -> RankingBatch:
    """The answers of all prompts, one row of tokens each; of no prompts, one token that no prompt points at."""
    answers = [answer for prompt in prompts for answer in prompt.answers] or [np.zeros(1, dtype=np.int64)]
    width = max((len(prompt.answers) for prompt in prompts), default=1)
    index = np.full((len(prompts), width), -1, dtype=np.int64)
    ranks, scores, numbers = np.zeros((3, len(prompts), width), dtype=np.int64)
    row = 0
    for i, prompt in enumerate(prompts):
        count = len(prompt.answers)
        index[i, :count] = np.arange(row, row + count)
        ranks[i, :count] = prompt.ranks
        scores[i, : len(prompt.scores)] = prompt.scores
        numbers[i, : len(prompt.numbers)] = prompt.numbers
        row += count
    lengths = torch.tensor([len(answer) for answer in answers], dtype=torch.int64)
    read = [prompt.prompt_length for prompt in prompts for _ in prompt.answers] or [0]
    table = torch.from_numpy(index)
    labelers, rounds = torch.tensor([(prompt.labeler, prompt.round) for prompt in prompts]).view(-1, 2).long().unbind(1)
    judged = (torch.from_numpy(ranks), table >= 0, torch.from_numpy(scores))
    of_data = (torch.tensor(read), torch.from_numpy(numbers))
    return RankingBatch(pad_right(answers), lengths, table, *judged, labelers, rounds, *of_data)


def collate_prompts(prompts: Sequence[IntArray], numbers: Sequence[int] | None = None) -> PromptBatch:
    """Prompts, right-padded; none may be empty (there would be nothing to predict the answer's first token from).

    Args:
        numbers: Of the prompts, and of their rows; None: counted from 0.

    Raises:
        ValueError: A prompt is empty.
    """
    lengths = torch.tensor([len(prompt) for prompt in prompts], dtype=torch.int64)
    if bool((lengths == 0).any()):
        raise ValueError("found an empty prompt, expected at least one token")
    counted = range(len(prompts)) if numbers is None else numbers
    counts = torch.tensor(list(counted), dtype=torch.int64)
    return PromptBatch(pad_right(prompts), lengths, counts, counts)


def cut_pair(text: Sequence[int], pair: Sequence[int], room: int) -> tuple[Sequence[int], Sequence[int]]:
    """Both texts in at most `room` tokens: the longer gives way first, and each keeps its beginning."""
    half = room // 2
    second = min(len(pair), max(half, room - len(text)))
    return text[: room - second], pair[:second]


def cut_answer(text: Sequence[int], answer: Sequence[int], room: int) -> tuple[Sequence[int], Sequence[int]]:
    """A text and an answer to it in at most `room` tokens: the text gives way, from its beginning, for a question or
    the last sentences stand at its end. An answer loses its end only where it exceeds half of the room.
    """
    second = min(len(answer), max(room // 2, room - len(text)))
    return text[max(0, len(text) - (room - second)) :], answer[:second]


def join_row(parts: Sequence[Sequence[int]], task_ids: tuple[int, int, int], begin: Sequence[int] = ()) -> IntArray:
    """[start] text [extract], or [start] text [delimiter] text [extract] (Radford et al. 2018, figure 1).

    Args:
        begin: the token that stands before every sequence of the family, if there is one.
    """
    start, delimiter, extract = task_ids
    tokens = [*begin, start]
    for i, part in enumerate(parts):
        tokens += [delimiter, *part] if i else part
    return np.array([*tokens, extract], dtype=np.int64)


def collate_tasks(examples: Sequence[TaskExample], numeric: bool) -> LabelledBatch:
    """The rows of all examples, padded to the longest; labels are float32 where they are `numeric`.

    Of no examples, one token that none points at.
    """
    rows = [row for example in examples for row in example.rows] or [np.zeros(1, dtype=np.int64)]
    index = np.full((len(examples), max((len(example.rows) for example in examples), default=0) or 1), -1)
    row = 0
    for i, example in enumerate(examples):
        index[i, : len(example.rows)] = np.arange(row, row + len(example.rows))
        row += len(example.rows)
    nothing = float("nan") if numeric else IGNORE
    labels = [nothing if example.label is None else example.label for example in examples]
    return LabelledBatch(
        pad_right(rows),
        torch.tensor([len(row) for row in rows], dtype=torch.int64),
        torch.from_numpy(index),
        torch.tensor(labels, dtype=torch.float32 if numeric else torch.int64),
    )
