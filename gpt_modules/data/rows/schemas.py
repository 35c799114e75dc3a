"""What a row must look like, one schema a procedure; a row that does not is refused with its field, what was found
and expected.

pretraining  {"text": str}
sft          {"prompt": str, "response": str} or {"messages": [{"role": "system"|"user"|"assistant"|"tool",
             "content": str}, ...]}, where the assistant may have a "weight" of 0, not to be learned from, or 1
reward       {"prompt": str, "responses": [str, ...], "ranking": [int, ...]} (parallel lists; 1 is best, equal is a tie)
             or {"prompt": str, "chosen": str, "rejected": str}; either may say who ranked, as an export of votes does:
             "labeler": str, "round": int, "scores": [1 to 7 or null, ...] parallel to the responses, or to chosen and
             rejected. In place of the prompt, or as prompt, messages up to where the assistant is to answer; chosen and
             rejected may be messages, whole conversations that begin alike, or hh-rlhf's transcripts (`messages`)
ppo          {"prompt": str} or {"messages": [...]}, the last not the assistant's; further fields and messages are kept,
             for reward functions that ask for them
finetuning   columns of any name: `labelled` checks them

Further fields are ignored elsewhere. A row in both forms of its schema is refused where they say different things; null
is no field.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from gpt_modules.data.rows.fields import FieldError, describe, items_of, mapping_of, text_of, texts_of
from gpt_modules.data.rows.messages import answer_of, messages_of, question_of, shared_question
from gpt_modules.data.splits import Row
from gpt_modules.storage.comparisons import SCORES

Schema = Literal["pretraining", "sft", "reward", "ppo"]
Check = Callable[[object], Row]
"""A record's row; raises `FieldError` where it does not fit."""

MOST_ROUNDS = 10**9


def check_row(record: object, schema: Schema, text_field: str = "text") -> Row:
    """The row with just its schema's fields; a comparison comes back as responses and ranking, and what a prompt's row
    says beside it as `columns`.

    Args:
        record: What a file or the hub holds.
        schema: The procedure that is to read it.
        text_field: For pretraining: the field that holds the text.

    Raises:
        FieldError: A field is missing, null, empty or of another type.
    """
    record = mapping_of(record)
    if schema == "pretraining":
        return {"text": text_of(record, text_field)}
    if schema == "ppo":
        asked = _asked(record)
        taken = {"prompt", "messages"}
        further = {str(name): value for name, value in record.items() if name not in taken and value is not None}
        further |= {name: value for name, value in asked.items() if name == "messages"}  # a reward may ask for them
        return {**asked, **({"columns": further} if further else {})}
    return _demonstration(record) if schema == "sft" else _comparison(record)


def _demonstration(record: Mapping[Any, Any]) -> Row:
    if record.get("messages") is None:
        return {"prompt": text_of(record, "prompt"), "response": text_of(record, "response")}
    messages = messages_of(record, weighed=True)
    if all(message["role"] != "assistant" or message.get("weight") == 0 for message in messages):
        raise FieldError("messages", "no turn of the assistant", "at least one to learn from")
    if messages[0]["role"] == "assistant" and messages[0].get("weight") != 0:
        expected = 'system or user, or "weight": 0 beside it'
        raise FieldError("messages[0].role", "the assistant, which nobody has asked", expected)
    _expect_said("prompt", record, messages, "user")
    _expect_said("response", record, messages, "assistant")
    return {"messages": messages}


def _comparison(record: Mapping[Any, Any]) -> Row:
    row = _ranked(record)
    if record.get("scores") not in (None, "") and (scores := _scores(record, row["responses"])) is not None:
        row["scores"] = scores
    if record.get("labeler") not in (None, ""):  # an empty cell of a table is none
        row["labeler"] = text_of(record, "labeler")
    if record.get("round") not in (None, ""):
        row["round"] = _round(record["round"])
    return row


def _ranked(record: Mapping[Any, Any]) -> Row:
    pair, listed = _given(record, "chosen", "rejected"), _given(record, "responses", "ranking")
    if pair and listed:
        raise FieldError(listed[0], f"it beside {pair[0]}", "responses and ranking, or chosen and rejected")
    if not listed and ("chosen" in record or "rejected" in record):
        asked, chosen, rejected = _pair(record)
        if chosen == rejected:
            raise FieldError("rejected", f"{describe(rejected)}, which is chosen too", "another answer")
        return {**asked, "responses": [chosen, rejected], "ranking": [1, 2]}
    asked = _asked(record)
    responses = texts_of(record, "responses")
    if len(responses) < 2:
        raise FieldError("responses", "a list of 1", "at least 2 to compare")
    return {**asked, "responses": responses, "ranking": _ranking(record, responses)}


def _asked(record: Mapping[Any, Any]) -> Row:
    """What the assistant is asked: a prompt, or messages."""
    if isinstance(record.get("prompt"), list):
        return {"messages": question_of(record, "prompt")}
    if record.get("messages") is None:
        return {"prompt": text_of(record, "prompt")}
    messages = question_of(record)
    _expect_said("prompt", record, messages, "user")
    return {"messages": messages}


def _pair(record: Mapping[Any, Any]) -> tuple[Row, str, str]:
    """(what is asked, chosen, rejected)."""
    if isinstance(record.get("prompt"), list) or (shared := shared_question(record)) is None:
        return _asked(record), answer_of(record, "chosen"), answer_of(record, "rejected")
    question, chosen, rejected = shared
    _expect_said("prompt", record, question, "user")
    return {"messages": question}, chosen, rejected


def _expect_said(name: str, record: Mapping[Any, Any], messages: Sequence[Row], role: str) -> None:
    """A text beside messages is one of theirs."""
    said = [message["content"] for message in messages if message["role"] == role]
    if record.get(name) is not None and record[name] not in said:
        raise FieldError(name, f"{describe(record[name])} beside messages that say something else", "either form")


def _given(record: Mapping[Any, Any], *names: str) -> list[str]:
    return [name for name in names if record.get(name) is not None]


def _ranking(record: Mapping[Any, Any], responses: list[str]) -> list[int]:
    ranking = _parallel(record, "ranking", responses)
    for i, rank in enumerate(ranking):
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise FieldError(f"ranking[{i}]", describe(rank), "a whole number from 1 (best)")
    _expect_same("ranking", ranking, responses)
    if record.get("best") is not None:
        _check_best(record["best"], ranking)
    return ranking


def _scores(record: Mapping[Any, Any], responses: list[str]) -> list[int | None] | None:
    """The scores, where there is one."""
    scores = _parallel(record, "scores", responses)
    for i, score in enumerate(scores):
        if not (score is None or (type(score) is int and score in SCORES)):
            raise FieldError(f"scores[{i}]", describe(score), f"a whole number, {SCORES[0]} to {SCORES[-1]}")
    _expect_same("scores", scores, responses)
    return scores if any(score is not None for score in scores) else None


def _parallel(record: Mapping[Any, Any], field: str, responses: list[str]) -> list[Any]:
    values = items_of(record, field)
    if len(values) != len(responses):
        raise FieldError(field, f"a list of {len(values)}", f"{len(responses)}, one for each response")
    return list(values)


def _expect_same(field: str, values: list[Any], responses: list[str]) -> None:
    """An answer that stands twice is the same answer."""
    for i, value in enumerate(values):
        first = values[responses.index(responses[i])]
        if value != first:
            found = f"{first!s:.40} and {value!s:.40} for the same answer, {describe(responses[i])}"
            raise FieldError(f"{field}[{i}]", found, "the same")


def _check_best(best: object, ranking: list[int]) -> None:
    """Ziegler's form of a vote, the place of the best answer, beside a ranking."""
    if type(best) is not int or not 0 <= best < len(ranking):
        raise FieldError("best", describe(best), f"the number of a response, 0 to {len(ranking) - 1}")
    if ranking[best] > min(ranking):
        first = ranking.index(min(ranking))
        found = f"{best}, whose rank is {ranking[best]!s:.40}, beside a ranking that begins with {first}"
        raise FieldError("best", found, "one that is ranked best")


def _round(value: object) -> int:
    """The number, which a table has as text."""
    number = int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 11 else value
    if type(number) is not int or not 1 <= number <= MOST_ROUNDS:
        raise FieldError("round", describe(value), f"a whole number from 1 to {MOST_ROUNDS}")
    return number
