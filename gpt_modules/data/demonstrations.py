"""Demonstrations as token examples: a response to a prompt, or what the assistant says in a conversation."""

import logging
from collections.abc import Sequence
from typing import Literal

import numpy as np

from gpt_modules.data.collate import TokenExample, truncate_example
from gpt_modules.data.rows.chat import Exchange, encode_answers, fit_conversation, naming_rows
from gpt_modules.data.splits import Row
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError
from gpt_modules.storage.comparisons import Prompt

log = logging.getLogger(__name__)

Learned = Literal["all", "last"]
"""Which answers of a conversation are learned."""


def encode_demonstrations(
    rows: Sequence[Row], tokenizer: Tokenizer, context: int, source: str, turns: Learned = "all"
) -> list[TokenExample]:
    """Rows as token examples of at most `context` inputs.

    A prompt and its response are joined as they are; a longer row is cut at the end and keeps no eos, and one whose
    prompt alone fills the context is left out. Of a conversation each answer (or the last) is learned with its end,
    after the ids that a prompt has wherever the model is asked (`encode_conversation`); where it is too long, its
    oldest turns are left out, whole. How many is logged once.

    Raises:
        UserError: None is left, or the chat template does not take a conversation.
    """
    whole, shortened = [], 0
    with naming_rows(rows):
        encoded = _encoded(rows, tokenizer, turns)
    for row, example in zip(rows, encoded, strict=True):
        if isinstance(example, TokenExample):
            whole.append(example)
            continue
        fitting = [_fitted(row["messages"], turn, of, tokenizer, context) for turn, of in example]
        shortened += any(of is not kept for (_, of), kept in zip(example, fitting, strict=True))
        whole += joined(fitting)
    if shortened:
        message = "%s: %d conversations lose their oldest turns in a context of %d tokens"
        log.warning(message, source, shortened, context)
    return _cut(whole, context, source)


def joined(exchanges: Sequence[Exchange]) -> list[TokenExample]:
    """The answers of one conversation as few examples: one goes on with the next prompt if that begins with all that
    was read and said before. Otherwise (a template that leaves out earlier thoughts, oldest turns that do not fit) the
    next answer has an example of its own, in which only it is learned.
    """
    examples: list[tuple[list[int], list[bool]]] = []
    for prompt, answer in exchanges:
        if not examples or prompt[: len(examples[-1][0])] != examples[-1][0]:
            examples.append(([], []))
        tokens, learned = examples[-1]
        learned += [False] * (len(prompt) - len(tokens)) + [True] * len(answer)
        tokens[:] = [*prompt, *answer]
    return [TokenExample(np.array(tokens), np.array(learned)) for tokens, learned in examples]


def _encoded(
    rows: Sequence[Row], tokenizer: Tokenizer, turns: Learned
) -> list[TokenExample | list[tuple[int, Exchange]]]:
    """Each row's example; of a conversation, where its answers stand and their ids."""
    places = [learned_turns(row["messages"], turns) if "messages" in row else [] for row in rows]
    asked: list[tuple[Prompt, str]] = []
    for row, of in zip(rows, places, strict=True):
        asked += [(row["messages"][:i], row["messages"][i]["content"]) for i in of] or [
            (row["prompt"], row["response"])
        ]
    exchanges = iter(encode_answers(asked, tokenizer))
    return [[(i, next(exchanges)) for i in of] if of else joined([next(exchanges)])[0] for of in places]


def learned_turns(messages: Sequence[Row], turns: Learned = "all") -> list[int]:
    """Where the assistant says what is to be learned: all that has no weight of 0, or the last of it."""
    found = [i for i, of in enumerate(messages) if of["role"] == "assistant" and of.get("weight") != 0]
    return found[-1:] if turns == "last" else found


def _fitted(messages: Sequence[Row], turn: int, exchange: Exchange, tokenizer: Tokenizer, context: int) -> Exchange:
    """The answer at this turn after as many of the turns before it as fit."""
    prompt, answer = exchange
    if len(prompt) + len(answer) <= context + 1:
        return exchange
    ids, dropped = fit_conversation(messages[:turn], tokenizer, context + 1 - len(answer))
    return Exchange(ids, answer) if dropped else exchange


def _cut(whole: Sequence[TokenExample], context: int, source: str) -> list[TokenExample]:
    cuts = [truncate_example(example, context) for example in whole]
    kept = [cut for cut in cuts if cut is not None]
    shortened = sum(cut is not None and cut.cells < example.cells for cut, example in zip(cuts, whole, strict=True))
    if shortened or len(kept) < len(whole):
        message = "%s: of %d rows, %d are cut to the context of %d tokens, %d whose prompt fills it are left out"
        log.warning(message, source, len(whole), shortened, context, len(whole) - len(kept))
    if not kept:
        raise UserError(f"{source}: found no row that fits a context of {context} tokens, expected at least one")
    return kept
