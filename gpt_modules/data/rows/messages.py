"""Conversations in rows, checked: who speaks, in which order, and that everybody says something.

A conversation is a list of {"role", "content"}, of which one system message may be the first. Pairs of answers come in
four forms: beside `messages` (or a `prompt` that is such a list), as texts or as lists of one message; as two whole
conversations that begin alike (TRL's implicit prompt); and as two transcripts (hh-rlhf), which are read as such.
"""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from itertools import takewhile
from typing import Any

from gpt_modules.data.rows.fields import FieldError, NoComparison, describe, items_of, text_of
from gpt_modules.data.splits import Row
from gpt_modules.storage.comparisons import Prompt

ROLES = ("system", "user", "assistant", "tool")
_READ = ("role", "content", "weight")
_CALLS = ("tool_calls", "tool_call_id", "function_call", "name", "refusal", "audio", "images", "prefix")
_THOUGHTS = ("thinking", "reasoning", "reasoning_content")
_LEARNED = ("train", "training", "loss", "mask", "learn")
_MEANT = (*_CALLS, *_THOUGHTS, *_LEARNED)
"""What others' messages have beside them that changes what is said or learned."""
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_HUMAN, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


def prompt_of(row: Row) -> Prompt:
    """What is to be answered in a checked row: a text, or a conversation."""
    found: Prompt = row["messages"] if "messages" in row else row["prompt"]
    return found


def messages_of(record: Mapping[Any, Any], field: str = "messages", weighed: bool = False) -> list[Row]:
    """The messages in a field.

    Args:
        weighed: keep the `weight` of what the assistant says, 0 or 1.

    Raises:
        FieldError: One does not fit, or stands where it may not.
    """
    messages = [_message(item, f"{field}[{i}]", weighed) for i, item in enumerate(items_of(record, field))]
    for i, message in enumerate(messages[1:], start=1):
        if message["role"] == "system":
            found = "a second message of the system" if messages[0]["role"] == "system" else "the system behind others"
            raise FieldError(f"{field}[{i}].role", found, "one at most, as the first message")
    if len(messages) == 1 and messages[0]["role"] == "system":
        raise FieldError(field, "nothing but a message of the system", "somebody who says something")
    return messages


def question_of(record: Mapping[Any, Any], field: str = "messages") -> list[Row]:
    """The messages in a field, after which the assistant is to speak.

    Raises:
        FieldError: As `messages_of`, or the assistant has spoken last.
    """
    messages = messages_of(record, field)
    if messages[-1]["role"] == "assistant":
        raise FieldError(f"{field}[{len(messages) - 1}].role", "the assistant, which is to answer", "user or tool")
    return messages


def answer_of(record: Mapping[Any, Any], field: str) -> str:
    """The answer in a field: a text, or a list of one message of the assistant."""
    if not isinstance(record.get(field), list):
        return text_of(record, field)
    messages = messages_of(record, field)
    return _last(messages, 0, field)


def shared_question(record: Mapping[Any, Any]) -> tuple[list[Row], str, str] | None:
    """(question, chosen, rejected) of two conversations that begin alike, or of two transcripts; None: the row has
    neither.

    Raises:
        FieldError: They do not begin alike, or one goes on with more than an answer.
        NoComparison: The same of transcripts, or somebody says nothing in them, or the same answer ends both.
    """
    chosen, rejected = record.get("chosen"), record.get("rejected")
    if isinstance(chosen, str) and isinstance(rejected, str) and chosen.startswith((_HUMAN, _ASSISTANT)):
        return _of_transcripts({name: _turns(record, name) for name in ("chosen", "rejected")})
    if isinstance(chosen, list) and isinstance(rejected, list) and len(chosen) > 1 and len(rejected) > 1:
        return _parted(record)
    return None


def _of_transcripts(turns: Mapping[str, list[Row]]) -> tuple[list[Row], str, str]:
    try:
        return _parted(turns)
    except FieldError as error:
        raise NoComparison(*error.parts) from error


def _parted(record: Mapping[Any, Any]) -> tuple[list[Row], str, str]:
    pair = messages_of(record, "chosen"), messages_of(record, "rejected")
    shared = [one for one, _ in takewhile(lambda both: both[0] == both[1], zip(*pair, strict=False))]
    answers = [_last(messages, len(shared), name) for messages, name in zip(pair, ("chosen", "rejected"), strict=True)]
    question_of({"chosen": shared}, "chosen")
    return shared, answers[0], answers[1]


def _message(item: object, name: str, weighed: bool) -> Row:
    if not isinstance(item, Mapping):
        raise FieldError(name, describe(item), "an object with role and content")
    _expect_read(item, name)
    role = text_of(item, "role", f"{name}.role")
    if role not in ROLES:
        raise FieldError(f"{name}.role", describe(role), " or ".join(ROLES))
    silent = role == "system" and item.get("content") == ""
    message: Row = {"role": role, "content": "" if silent else text_of(item, "content", f"{name}.content")}
    weight = item.get("weight") if weighed else None
    if weight is not None:
        if role != "assistant" or isinstance(weight, bool) or weight not in (0, 1):
            raise FieldError(f"{name}.weight", f"{describe(weight)} of the {role}", "0 or 1, of the assistant")
        message["weight"] = int(weight)
    return message


def _expect_read(item: Mapping[Any, Any], name: str) -> None:
    """No key of a message means something that is not read, nor is one that is read misspelt; null is not given.

    Others, such as a date or a language, say something of the message and change nothing.
    """
    for key, value in item.items():
        if key in _READ or value is None or value in ("", [], {}):
            continue
        if key in _MEANT or get_close_matches(str(key).lower(), _READ, cutoff=0.75):
            raise FieldError(f"{name}.{key:.24}", describe(value), "role, content and weight: it is not read")


def _last(messages: list[Row], shared: int, field: str) -> str:
    """The one answer that follows what is shared."""
    said = messages[shared:]
    if len(said) != 1 or said[0]["role"] != "assistant":
        found = "nothing" if not said else f"{len(said)} messages, the first of the {said[0]['role']},"
        raise FieldError(field, f"{found} behind the messages that are shared", "one of the assistant")
    return str(said[0]["content"])


def _turns(record: Mapping[Any, Any], field: str) -> list[Row]:
    """The messages of a transcript, not checked."""
    roles = {"Human": "user", "Assistant": "assistant"}
    opening, *parts = _SPEAKER.split(text_of(record, field))
    if opening.strip() or not parts:
        raise FieldError(field, describe(record[field]), f"a transcript, which begins with {_HUMAN!r}")
    said = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": roles[who], "content": text.strip()} for who, text in said]
