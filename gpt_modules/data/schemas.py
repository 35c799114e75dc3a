"""What a row must look like, one schema a procedure; a row that does not is refused with its field, what was found
and expected.

pretraining  {"text": str}
sft          {"prompt": str, "response": str} or {"messages": [{"role": "system"|"user"|"assistant", "content": str},
...]} reward       {"prompt": str, "responses": [str, ...], "ranking": [int, ...]} (parallel lists; 1 is best, equal
is a tie)
             or {"prompt": str, "chosen": str, "rejected": str}
ppo          {"prompt": str}

Further fields are ignored.
"""

from collections.abc import Mapping
from typing import Any, Literal

Schema = Literal["pretraining", "sft", "reward", "ppo"]
Row = dict[str, Any]

ROLES = ("system", "user", "assistant")


class FieldError(ValueError):
    """A field that does not fit: `field: found ..., expected ...`."""

    def __init__(self, field: str, found: str, expected: str) -> None:
        super().__init__(f"{field}: found {found}, expected {expected}")


def check_row(record: object, schema: Schema, text_field: str = "text") -> Row:
    """The row with just its schema's fields; a comparison comes back as responses and ranking.

    Args:
        record: What a file or the hub holds.
        schema: The procedure that is to read it.
        text_field: For pretraining: the field that holds the text.

    Raises:
        FieldError: A field is missing, null, empty or of another type.
    """
    if not isinstance(record, Mapping):
        raise FieldError("row", describe(record), "an object with named fields")
    if schema == "pretraining":
        return {"text": _text(record, text_field)}
    if schema == "ppo":
        return {"prompt": _text(record, "prompt")}
    return _demonstration(record) if schema == "sft" else _comparison(record)


def describe(value: object) -> str:
    """A value in words for an error message, short."""
    if value is None:
        return "null"
    if isinstance(value, str):
        shown = repr(value[:40]) + ("..." if len(value) > 40 else "")
        return f"the text {shown}" if value.strip() else "empty text"
    if isinstance(value, bool | int | float):
        return f"the {'truth value' if isinstance(value, bool) else 'number'} {value}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "an object" if isinstance(value, Mapping) else f"a {type(value).__name__}"


def _text(record: Mapping[Any, Any], field: str, name: str | None = None) -> str:
    name = name or field
    if field not in record:
        raise FieldError(name, f"no such field among {sorted(map(str, record))[:8]}", "text")
    value = record[field]
    if not isinstance(value, str) or not value.strip():
        raise FieldError(name, describe(value), "non-empty text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise FieldError(name, "half of a surrogate pair", "text that UTF-8 can hold") from None
    return value


def _items(record: Mapping[Any, Any], field: str) -> list[Any]:
    if field not in record:
        raise FieldError(field, f"no such field among {sorted(map(str, record))[:8]}", "a list")
    value = record[field]
    if not isinstance(value, list) or not value:
        raise FieldError(field, "an empty list" if value == [] else describe(value), "a list")
    return value


def _demonstration(record: Mapping[Any, Any]) -> Row:
    if record.get("messages") is None:
        return {"prompt": _text(record, "prompt"), "response": _text(record, "response")}
    messages = [_message(item, i) for i, item in enumerate(_items(record, "messages"))]
    if all(message["role"] != "assistant" for message in messages):
        raise FieldError("messages", "no turn of the assistant", "at least one to learn from")
    return {"messages": messages}


def _message(item: object, i: int) -> dict[str, str]:
    name = f"messages[{i}]"
    if not isinstance(item, Mapping):
        raise FieldError(name, describe(item), "an object with role and content")
    role = _text(item, "role", f"{name}.role")
    if role not in ROLES:
        raise FieldError(f"{name}.role", describe(role), " or ".join(ROLES))
    return {"role": role, "content": _text(item, "content", f"{name}.content")}


def _comparison(record: Mapping[Any, Any]) -> Row:
    prompt = _text(record, "prompt")
    if record.get("responses") is None and record.get("chosen", record.get("rejected")) is not None:
        return {"prompt": prompt, "responses": [_text(record, "chosen"), _text(record, "rejected")], "ranking": [1, 2]}
    responses = _items(record, "responses")
    for i, response in enumerate(responses):
        _text({"": response}, "", f"responses[{i}]")
    if len(responses) < 2:
        raise FieldError("responses", "a list of 1", "at least 2 to compare")
    return {"prompt": prompt, "responses": list(responses), "ranking": _ranking(record, len(responses))}


def _ranking(record: Mapping[Any, Any], count: int) -> list[int]:
    ranking = _items(record, "ranking")
    if len(ranking) != count:
        raise FieldError("ranking", f"{len(ranking)} ranks", f"{count}, one for each response")
    for i, rank in enumerate(ranking):
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise FieldError(f"ranking[{i}]", describe(rank), "a whole number from 1 (best)")
    return list(ranking)
