"""The fields of a record, and the line for one that does not fit."""

from collections.abc import Mapping
from typing import Any

SHOWN_LETTERS = 24  # of a field's name that was not expected


class FieldError(ValueError):
    """A field that does not fit: `field: found ..., expected ...`."""

    def __init__(self, field: str, found: str, expected: str) -> None:
        super().__init__(f"{field}: found {found}, expected {expected}")
        self.parts = field, found, expected


class NoComparison(FieldError):
    """Two transcripts that are not two answers to one question: hh-rlhf holds such, and the user cannot mend them."""


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
    if not isinstance(value, list):
        raise FieldError(field, describe(value), "a list")
    if not value:
        raise FieldError(field, "an empty list", "at least one item")
    return value


def texts_of(record: Mapping[Any, Any], field: str) -> list[str]:
    """The texts in a list, none of them empty."""
    return [text_of({"": item}, "", f"{field}[{i}]") for i, item in enumerate(items_of(record, field))]
