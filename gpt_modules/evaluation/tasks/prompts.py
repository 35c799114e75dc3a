"""Prompts: instruction, K demonstrations and the question, as tokens, in the way that a model reads one text.

Every prompt follows an end token unless told otherwise, as documents do in pretraining: a model trained on packed
windows has hardly seen a text begin in any other way. lm-evaluation-harness starts without one; the papers do not say.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError
from gpt_modules.evaluation.tasks.definitions import EvaluationTask
from gpt_modules.evaluation.tasks.questions import Question, Questions
from gpt_modules.evaluation.tasks.scoring import Row


class Prompt(NamedTuple):
    """An item as the model reads it.

    text: what stands before the first answer. rows: (context, continuation) as tokens, one an answer; generate: one,
    whose continuation is empty. shots: the demonstrations that fitted. cut: the context loses tokens at its left.
    """

    text: str
    rows: tuple[Row, ...]
    shots: int
    cut: bool


def encode_pairs(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], end_token: bool = True) -> list[Row]:
    """(context, continuation) of each pair of texts, as the two stand in one text.

    Both are encoded together and then parted, for what a text's tokens are depends on what follows. White space that
    ends a context belongs to the continuation (as in lm-evaluation-harness), and so does a token that reaches across
    the border. An empty context is an end token, whatever `end_token` says, so that something predicts what follows. A
    family that begins a sequence with a token of its own has that in its place, and before every context.
    """
    moved = [(before.rstrip(), before[len(before.rstrip()) :] + after) for before, after in pairs]
    contexts = list(dict.fromkeys(before for before, _ in moved))
    encoded = dict(zip(contexts, tokenizer.encode_batch(contexts), strict=True))
    begins = end_token or tokenizer.bos_id is not None
    wholes = tokenizer.encode_batch([before + after for before, after in moved])
    return [_part(whole, encoded[before], tokenizer.start_id, begins)
            for whole, (before, _) in zip(wholes, moved, strict=True)]  # fmt: skip


def _part(whole: list[int], context: list[int], start_id: int, begins: bool) -> Row:
    shared = next((i for i, (a, b) in enumerate(zip(whole, context, strict=False)) if a != b), len(context))
    start = [start_id] if begins or not shared else []
    return [*start, *whole[:shared]], whole[shared:]


def build_prompts(
    task: EvaluationTask,
    questions: Questions,
    tokenizer: Tokenizer,
    n_positions: int,
    shots: int = 0,
    seed: int = 0,
    end_token: bool = True,
) -> list[Prompt]:
    """A prompt an item, with as many of its K demonstrations, from the last one on, as the model's context has room
    for.

    Raises:
        UserError: Fewer than K demonstrations to draw from, or a continuation that alone is too long.
    """
    writer = _Writer(task, tokenizer, n_positions, end_token)
    items, drawn = questions.items, draw_demonstrations(task, questions, shots, seed)
    kept = [shots] * len(items)
    rows = writer.rows(items, drawn, kept)
    if shots and (long := [i for i, found in enumerate(rows) if not writer.fits(found)]):
        for i, count in zip(long, _that_fit(writer, [items[i] for i in long], [drawn[i] for i in long]), strict=True):
            kept[i] = count
        rows = writer.rows(items, drawn, kept)
    texts = [writer.text(*one) for one in zip(items, drawn, kept, strict=True)]
    return [writer.prompt(*one) for one in zip(texts, rows, kept, range(1, len(rows) + 1), strict=True)]


def _that_fit(writer: "_Writer", items: list[Question], drawn: list[list[str]]) -> list[int]:
    """How many of each item's demonstrations fit, all of them being too many: by bisection, all items at once."""
    low, high = [0] * len(items), [len(texts) - 1 for texts in drawn]
    while open_items := [i for i in range(len(items)) if low[i] < high[i]]:
        middle = [(low[i] + high[i] + 1) // 2 for i in open_items]
        tried = writer.rows([items[i] for i in open_items], [drawn[i] for i in open_items], middle)
        for i, count, found in zip(open_items, middle, tried, strict=True):
            low[i], high[i] = (count, high[i]) if writer.fits(found) else (low[i], count - 1)
    return low


def draw_demonstrations(task: EvaluationTask, questions: Questions, shots: int, seed: int) -> list[list[str]]:
    """K different demonstrations an item, never the item itself; the same for the same seed.

    Raises:
        UserError: There are fewer than K.
    """
    pool, drawn = questions.pool, []
    for number, item in enumerate(questions.items):
        own = item.demonstration
        key = f"{seed} {task.name} {number}" if task.draw == "item" else f"{seed} {task.name}"
        found = random.Random(key).sample(pool, min(shots + 1, len(pool))) if shots else []
        chosen = [text for text in found if text != own][:shots]
        if len(chosen) < shots:
            raise UserError(f"{task.name}: demonstrations: found {len(chosen)} besides item {number + 1}, expected at "
                            f"least {shots}")  # fmt: skip
        drawn.append(chosen)
    return drawn


class _Writer:
    """Texts and tokens of a task's prompts."""

    def __init__(self, task: EvaluationTask, tokenizer: Tokenizer, n_positions: int, end_token: bool) -> None:
        self.task = task
        self.tokenizer = tokenizer
        self.n_positions = n_positions
        self.end_token = end_token

    def text(self, question: Question, demonstrations: list[str], count: int) -> str:
        """The last `count` demonstrations and the question; the one nearest to it is kept longest."""
        return self._before(demonstrations, count) + question.answers[0][0]

    def rows(self, questions: Sequence[Question], drawn: list[list[str]], counts: list[int]) -> list[tuple[Row, ...]]:
        """Tokens of each question's prompt and answers."""
        starts = [self._before(*one) for one in zip(drawn, counts, strict=True)]
        if self.task.kind == "generate":
            texts = [start + question.answers[0][0] for start, question in zip(starts, questions, strict=True)]
            encoded = self.tokenizer.encode_batch(texts)
            first, begins = [self.tokenizer.start_id], self.end_token or self.tokenizer.bos_id is not None
            return [(((first if begins or not ids else []) + ids, []),) for ids in encoded]
        pairs = [(start + before, after) for start, question in zip(starts, questions, strict=True)
                 for before, after in question.answers]  # fmt: skip
        found = iter(encode_pairs(self.tokenizer, pairs, self.end_token))
        return [tuple(next(found) for _ in question.answers) for question in questions]

    def fits(self, rows: tuple[Row, ...]) -> bool:
        """Whether the model sees all of each row."""
        if self.task.kind == "generate":
            return len(rows[0][0]) + self.task.max_new_tokens <= self.n_positions
        return all(len(context) + len(continuation) <= self.n_positions + 1 for context, continuation in rows)

    def prompt(self, text: str, rows: tuple[Row, ...], shots: int, number: int) -> Prompt:
        """The prompt of item `number`; what is too long for the model loses its beginning."""
        name, limit, cut = self.task.name, self.n_positions, not self.fits(rows)
        if self.task.kind == "generate":
            new = self.task.max_new_tokens
            if new >= limit:
                raise UserError(f"{name}: max_new_tokens: found {new}, expected fewer than n_positions = {limit}")
            return Prompt(text, ((rows[0][0][new - limit :], []),), shots, cut)
        for _, continuation in rows:
            if not 0 < len(continuation) <= limit:
                found = f"found an answer of {len(continuation)} tokens"
                raise UserError(f"{name}: item {number}: {found}, expected 1 to n_positions = {limit}")
        return Prompt(text, rows, shots, cut)

    def _before(self, demonstrations: list[str], count: int) -> str:
        parts = [self.task.instruction] if self.task.instruction else []
        return "".join(part + self.task.separator for part in [*parts, *demonstrations[len(demonstrations) - count :]])
