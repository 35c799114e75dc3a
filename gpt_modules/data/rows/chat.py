"""Conversations as token ids, by the chat template that a model's folder carries (`data.text.chat_template`).

What is said is text and never a control token (`data.text.turns`). A prompt has the same ids wherever it is read.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import NamedTuple

from gpt_modules.data.splits import Row
from gpt_modules.data.text.chat_template import ChatTemplate, Message
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError
from gpt_modules.storage.comparisons import Prompt


class Exchange(NamedTuple):
    """Ids of a prompt, and of an answer to it with its end."""

    prompt: list[int]
    answer: list[int]


def render_conversation(messages: Sequence[Message], tokenizer: Tokenizer) -> str:
    """The text of a conversation, up to where the assistant is to speak next: to show."""
    return tokenizer.template.render(messages, speak=True)


def as_text(prompt: Prompt) -> str:
    """What a function of a user's own reads of a prompt, whichever model is asked and wherever the function stands: a
    text as it is, a conversation in the form of our own template, up to where the assistant is to speak, without end
    tokens.
    """
    return prompt if isinstance(prompt, str) else ChatTemplate().with_end("").render(prompt, speak=True)


def encode_conversation(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """The ids of a conversation, up to where the assistant is to speak next: what to generate from.

    They are those of `transformers`' `apply_chat_template`, but that a control token in what is said stays text.

    Args:
        messages: `{"role", "content"}` each, of which the last is not the assistant's.

    Raises:
        UserError: The template does not take them.
    """
    return encode_conversations([messages], tokenizer)[0]


def encode_conversations(conversations: Sequence[Sequence[Message]], tokenizer: Tokenizer) -> list[list[int]]:
    """Equal to `[encode_conversation(messages, tokenizer) for messages in conversations]`, on all cores."""
    parts = []
    for messages in conversations:
        with _naming(messages):
            parts.append(tokenizer.turns.parts(messages, speak=True))
    return tokenizer.encode_parts(parts)


def encode_asked(prompts: Sequence[Prompt], tokenizer: Tokenizer) -> list[list[int]]:
    """The ids of texts, as they are behind what begins a sequence, and of conversations."""
    texts = iter(tokenizer.opening([prompt for prompt in prompts if isinstance(prompt, str)]))
    asked = iter(encode_conversations([prompt for prompt in prompts if not isinstance(prompt, str)], tokenizer))
    return [next(texts) if isinstance(prompt, str) else next(asked) for prompt in prompts]


def encode_answers(asked: Sequence[tuple[Prompt, str]], tokenizer: Tokenizer) -> list[Exchange]:
    """Prompts, as `encode_asked` has them, with an answer to each. To a text the answer is joined as it is, and the end
    token closes it; to a conversation as in `encode_exchanges`. Each text is encoded once.

    Raises:
        UserError: As `encode_exchanges`.
    """
    plain = [(prompt, answer) for prompt, answer in asked if isinstance(prompt, str)]
    texts = list(dict.fromkeys(prompt for prompt, _ in plain))
    opened = dict(zip(texts, tokenizer.opening(texts), strict=True))
    answers = list(dict.fromkeys(answer for _, answer in plain))
    ids = dict(zip(answers, tokenizer.within.encode_batch(answers), strict=True))
    told = [(prompt, answer) for prompt, answer in asked if not isinstance(prompt, str)]
    exchanges = iter(encode_exchanges(told, tokenizer))
    return [
        Exchange(opened[prompt], [*ids[answer], tokenizer.eos_id]) if isinstance(prompt, str) else next(exchanges)
        for prompt, answer in asked
    ]


def encode_exchanges(asked: Sequence[tuple[Sequence[Message], str]], tokenizer: Tokenizer) -> list[Exchange]:
    """Conversations with an answer to each. The prompt's ids are those of `encode_conversation`; the answer's are those
    that follow them in the whole conversation, or where a token would span both, those of the answer alone.

    Raises:
        UserError: The template does not take one of them, or does not end its answer.
    """
    parts = []
    for messages, answer in asked:
        with _naming(messages):
            parts.append(tokenizer.turns.answer(messages, answer))
    prompts = tokenizer.encode_parts([prompt for prompt, _ in parts])
    wholes = tokenizer.encode_parts([[*prompt[:-1], f"{prompt[-1]}{said[0]}", *said[1:]] for prompt, said in parts])
    follows = [whole[: len(prompt)] == prompt for prompt, whole in zip(prompts, wholes, strict=True)]
    alone = iter(tokenizer.encode_parts([said for (_, said), fits in zip(parts, follows, strict=True) if not fits]))
    return [
        Exchange(prompt, whole[len(prompt) :] if fits else next(alone))
        for prompt, whole, fits in zip(prompts, wholes, follows, strict=True)
    ]


class Refused(UserError):
    """A template takes no conversation of these messages."""

    def __init__(self, line: str, messages: Sequence[Message]) -> None:
        super().__init__(line)
        self.messages = messages


@contextmanager
def naming_rows(rows: Iterable[Row]) -> Iterator[None]:
    """What a template refuses is named with the file and the line of its row, where one of these has it."""
    try:
        yield
    except Refused as error:
        # Rows are cut and shortened before they are encoded, but a message stays the one that was read.
        found = (row for row in rows if any(of is error.messages[-1] for of in row.get("messages", ())))
        where = getattr(next(found, None), "where", None)
        if where is None:
            raise
        raise UserError(f"{where}: {error}") from error


@contextmanager
def _naming(messages: Sequence[Message]) -> Iterator[None]:
    """What a template says of one conversation among many says of which: by what was said last in it."""
    try:
        yield
    except UserError as error:
        last = messages[-1] if messages else {"role": "nobody", "content": ""}
        text = repr(last["content"][:40]) + ("..." if len(last["content"]) > 40 else "")
        line = f"{error} (in the conversation in which the {last['role']} says {text})"
        raise Refused(line, messages) from error


def fit_conversation(messages: Sequence[Message], tokenizer: Tokenizer, room: int) -> tuple[list[int], int]:
    """The ids of `encode_conversation` and how many of the oldest turns are left out, whole, so that there are at most
    `room` ids. What the system says stays, and so does the last turn: alone, it may be longer.

    A turn is what a user says and all up to what a user says next.
    """
    kept, dropped = shorten(messages, tokenizer, room)
    return encode_conversation(kept, tokenizer), dropped


def shorten(messages: Sequence[Message], tokenizer: Tokenizer, room: int) -> tuple[list[Message], int]:
    """What `fit_conversation` gives the ids of."""
    found: tuple[list[Message], int] = [*messages], 0
    for dropped, kept in enumerate(_shortened(messages)):
        found = [*kept], dropped
        if len(encode_conversation(kept, tokenizer)) <= room:
            break
    return found


def _shortened(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """The conversation, then without its first turn, and so on up to the last one."""
    yield messages
    told = [*takewhile(lambda message: message["role"] == "system", messages)]
    begins = [i for i, message in enumerate(messages) if message["role"] == "user"]
    yield from ([*told, *messages[i:]] for i in begins[1:])
