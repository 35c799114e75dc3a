"""What a row must look like, one schema a procedure; a row that does not is refused with its field, what was found
and expected.

pretraining  {"text": str}
sft          {"prompt": str, "response": str} or {"messages": [{"role": "system"|"user"|"assistant", "content": str},
             ...]}
reward       {"prompt": str, "responses": [str, ...], "ranking": [int, ...]} (parallel lists; 1 is best, equal is a tie)
             or {"prompt": str, "chosen": str, "rejected": str}; either may say who ranked, as an export of votes does:
             "labeler": str, "round": int, "scores": [1 to 7 or null, ...] parallel to the responses, or to chosen and
             rejected
ppo          {"prompt": str}; further fields are kept, for reward functions that ask for them
finetuning   columns of any name: `labelled` checks them

Further fields are ignored elsewhere. A row in both forms of its schema is refused where they say different things; null
is no field.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from gpt_modules.data.splits import Row
from gpt_modules.storage.comparisons import SCORES

Schema = Literal["pretraining", "sft", "reward", "ppo"]
Check = Callable[[object], Row]
"""A record's row; raises `FieldError` where it does not fit."""

SHOWN_LETTERS = 24  # of a field's name that was not expected
ROLES = ("system", "user", "assistant")
MOST_ROUNDS = 10**9


class FieldError(ValueError):
    """A field that does not fit: `field: found ..., expected ...`."""

    def __init__(self, field: str, found: str, expected: str) -> None:
        super().__init__(f"{field}: found {found}, expected {expected}")


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
        further = {str(name): value for name, value in record.items() if name != "prompt" and value is not None}
        return {"prompt": text_of(record, "prompt"), **({"columns": further} if further else {})}
    return _demonstration(record) if schema == "sft" else _comparison(record)


def describe(value: object) -> str:
    """A value in words for an error message, short."""
    if value is None:
        return "null"
    if isinstance(value, str):
        shown = repr(value[:40]) + ("..." if len(value) > 40 else "")
        return f"the text {shown}" if value.strip() else "empty text"
    if isinstance(value, bool):
        return f"the truth value {value}"
    if isinstance(value, int | float):
        return f"the number {value!s:.40}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "an object" if isinstance(value, Mapping) else f"a {type(value).__name__}"


def mapping_of(record: object) -> Mapping[Any, Any]:
    """The record, if it has named fields."""
    if not isinstance(record, Mapping):
        raise FieldError("row", describe(record), "an object with named fields")
    return record


def no_such_field(record: Mapping[Any, Any]) -> str:
    """What was found in place of a field that is missing."""
    names = [name if len(name) <= SHOWN_LETTERS else f"{name[:SHOWN_LETTERS]}..." for name in sorted(map(str, record))]
    return f"no such field among {names[:8]}"


def text_of(record: Mapping[Any, Any], field: str, name: str | None = None) -> str:
    """The text in a field, which must have some; `name` is the field's in an error message."""
    name = name or field
    if field not in record:
        raise FieldError(name, no_such_field(record), "text")
    value = record[field]
    if not isinstance(value, str) or not value.strip():
        raise FieldError(name, describe(value), "non-empty text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise FieldError(name, "half of a surrogate pair", "text that UTF-8 can hold") from None
    return value


def items_of(record: Mapping[Any, Any], field: str) -> list[Any]:
    """The list in a field, which must not be empty."""
    if field not in record:
        raise FieldError(field, no_such_field(record), "a list")
    value = record[field]
    if not isinstance(value, list) or not value:
        raise FieldError(field, "an empty list" if value == [] else describe(value), "a list")
    return value


def texts_of(record: Mapping[Any, Any], field: str) -> list[str]:
    """The texts in a list, none of them empty."""
    return [text_of({"": item}, "", f"{field}[{i}]") for i, item in enumerate(items_of(record, field))]


def _demonstration(record: Mapping[Any, Any]) -> Row:
    if record.get("messages") is None:
        return {"prompt": text_of(record, "prompt"), "response": text_of(record, "response")}
    messages = [_message(item, i) for i, item in enumerate(items_of(record, "messages"))]
    if all(message["role"] != "assistant" for message in messages):
        raise FieldError("messages", "no turn of the assistant", "at least one to learn from")
    for name, role in (("prompt", "user"), ("response", "assistant")):
        said = [message["content"] for message in messages if message["role"] == role]
        if record.get(name) is not None and record[name] not in said:
            raise FieldError(name, f"{describe(record[name])} beside messages that say something else", "either form")
    return {"messages": messages}


def _message(item: object, i: int) -> dict[str, str]:
    name = f"messages[{i}]"
    if not isinstance(item, Mapping):
        raise FieldError(name, describe(item), "an object with role and content")
    role = text_of(item, "role", f"{name}.role")
    if role not in ROLES:
        raise FieldError(f"{name}.role", describe(role), " or ".join(ROLES))
    return {"role": role, "content": text_of(item, "content", f"{name}.content")}


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
    prompt = text_of(record, "prompt")
    pair, listed = _given(record, "chosen", "rejected"), _given(record, "responses", "ranking")
    if pair and listed:
        raise FieldError(listed[0], f"it beside {pair[0]}", "responses and ranking, or chosen and rejected")
    if not listed and ("chosen" in record or "rejected" in record):
        chosen, rejected = text_of(record, "chosen"), text_of(record, "rejected")
        if chosen == rejected:
            raise FieldError("rejected", f"{describe(rejected)}, which is chosen too", "another answer")
        return {"prompt": prompt, "responses": [chosen, rejected], "ranking": [1, 2]}
    responses = texts_of(record, "responses")
    if len(responses) < 2:
        raise FieldError("responses", "a list of 1", "at least 2 to compare")
    return {"prompt": prompt, "responses": responses, "ranking": _ranking(record, responses)}


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
