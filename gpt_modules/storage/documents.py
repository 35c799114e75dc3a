"""The one typed reader of small documents: a dataclass says which keys there are and of which type, and what does not
fit gets one line with the file, the key, what was found and what was expected.

Task files, pipelines, manifests, `results.json`, `summary.json` and `config.json` are read by it. An annotation may be
a plain type, a Literal, a union, a list, tuple or dict of such, another dataclass or NamedTuple, or `Annotated` with a
`Rule`. True is no number; a whole number is good as a float; numbers are finite.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from gpt_modules.errors import UserError, expect
from gpt_modules.storage.json_files import read_json, shown
from gpt_modules.storage.text_files import LARGEST

DocumentT = TypeVar("DocumentT")


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a value must be beyond its type, as `Annotated[int, Rule(...)]`."""

    fits: Callable[[Any], object]
    expected: str


class Foreign:
    """Base of a document that another program writes too: keys that are not its own are left alone."""


Count = Annotated[int, Rule(lambda number: number >= 0, "a whole number from 0")]
Positive = Annotated[int, Rule(lambda number: number >= 1, "a whole number from 1")]
Sha256 = Annotated[str, Rule(re.compile("[0-9a-f]{64}").fullmatch, "a SHA-256 in hexadecimal")]
FileName = Annotated[
    str,
    Rule(
        lambda name: (
            name not in (".", "..") and 0 < len(name) <= 200 and name.isprintable() and not set(name) & set("/\\")
        ),
        "the name of a file, no path",
    ),
]

_LARGEST_NUMBER = 2**64
_PLAIN: dict[Any, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "text"),
    Path: ((str,), "a path"),
    NoneType: ((NoneType,), "nothing"),
}
_UNIONS = (Union, UnionType)
_LISTS = (list, tuple, Sequence)
_MAPPINGS = (dict, Mapping)


def read_document(path: Path, kind: type[DocumentT], expected: str, largest: int = LARGEST) -> DocumentT:
    """The document in a JSON file, as the dataclass `kind`.

    Args:
        expected: what the file should be, for the message.

    Raises:
        UserError: one line, see `read_json` and `document_of`.
    """
    return document_of(path, kind, read_json(path, expected, largest))


def document_of(path: Path, kind: type[DocumentT], value: object) -> DocumentT:
    """Plain values that were read from a file, as the dataclass `kind`.

    Raises:
        UserError: one line with the file, for a key that is missing, unknown, or whose value is of another type.
    """
    try:
        return typed(kind, value)  # type: ignore[no-any-return]
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def settings_of(kind: type[DocumentT], value: DocumentT | Mapping[str, Any], key: str) -> DocumentT:
    """A group of settings that Python gave: the dataclass `kind` itself, or a mapping of its names, whose own groups
    may be either.

    Raises:
        UserError: one line with the key, for anything else.
    """
    if isinstance(value, kind):
        return value
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    expected = f"one, or a mapping with names among {', '.join(names)}"
    expect(isinstance(value, Mapping) and {*value} <= {*names}, key, value, expected)
    return typed(kind, _plain_groups(value), key)  # type: ignore[no-any-return]


def _plain_groups(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [*map(_plain_groups, value)]
    return {name: _plain_groups(of) for name, of in value.items()} if isinstance(value, Mapping) else value


def typed(kind: Any, value: object, key: str = "", first: int = 1) -> Any:
    """A plain value as the type of an annotation.

    Args:
        key: where the value stands, such as "stages[2].name".
        first: the number of a list's first item, in messages: 1 in what people write, 0 in what programs send.

    Raises:
        UserError: one line with the key, for what does not fit.
    """
    origin, of = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is Annotated:
        return _ruled(kind, value, key, first)
    if origin in _UNIONS:
        return _one_of(kind, value, key, first)
    if not _alike(kind, value):
        raise _misfit(kind, value, key)
    if dataclasses.is_dataclass(kind) or hasattr(kind, "_fields"):
        return _fields(kind, value, key, first)
    if origin in _LISTS:
        return _items(origin, of, value, key, first)
    if origin in _MAPPINGS:
        return _entries(of[1], value, key, first)
    return value if origin is Literal else _plain(kind, value, key)


def _ruled(kind: Any, value: object, key: str, first: int) -> Any:
    inner, *rules = get_args(kind)
    if inner in _PLAIN and not _alike(inner, value):
        raise _misfit(kind, value, key)
    found = typed(inner, value, key, first)
    if not all(rule.fits(found) for rule in rules):
        raise _misfit(kind, value, key)
    return found


def _one_of(kind: Any, value: object, key: str, first: int) -> Any:
    """The first of the union's types that fits; where but one is of the right shape, it says what is wrong inside."""
    near = [option for option in get_args(kind) if _alike(option, value)]
    for option in near[:-1]:
        try:
            return typed(option, value, key, first)
        except UserError:
            continue
    if not near:
        raise _misfit(kind, value, key)
    return typed(near[-1], value, key, first)


def _alike(kind: Any, value: object) -> bool:
    """Whether a value has a type's outer shape."""
    origin, of = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _alike(of[0], value)
    if origin is Literal:
        return any(type(option) is type(value) and option == value for option in of)
    if origin in _UNIONS:
        return any(_alike(option, value) for option in of)
    if origin in _LISTS:
        return isinstance(value, list | tuple)
    if kind in _PLAIN:
        return isinstance(value, _PLAIN[kind][0]) and (kind is bool or not isinstance(value, bool))
    return kind is Any or isinstance(value, dict)


def _fields(kind: Any, value: Any, key: str, first: int) -> Any:
    known, required = _known(kind)
    for name in value:
        if name not in known and not issubclass(kind, Foreign):
            raise UserError(f"{at(key, name)}: unknown key, expected one of {', '.join(known)}")
    for name in required:
        if name not in value:
            raise UserError(f"{at(key, name)}: missing, expected {expected_of(known[name])}")
    found = {name: typed(known[name], value[name], at(key, name), first) for name in known if name in value}
    try:
        return kind(**found)
    except UserError as error:
        raise UserError(f"{key}.{error}" if key else str(error)) from error


@cache
def _known(kind: Any) -> tuple[dict[str, Any], list[str]]:
    """The annotation of each key, and the keys that a document must have."""
    types = get_type_hints(kind, include_extras=True)
    if not dataclasses.is_dataclass(kind):
        return {name: types[name] for name in kind._fields}, [n for n in kind._fields if n not in kind._field_defaults]
    fields = [field for field in dataclasses.fields(kind) if field.init]
    missing = dataclasses.MISSING
    required = [field.name for field in fields if field.default is missing and field.default_factory is missing]
    return {field.name: types[field.name] for field in fields}, required


def _items(origin: Any, of: tuple[Any, ...], value: Any, key: str, first: int) -> Any:
    if origin is not tuple or of[-1] is ...:
        kinds = (of[0],) * len(value)
    elif len(of) == len(value):
        kinds = of
    else:
        raise UserError(f"{key}: found {len(value)} values, expected {len(of)}")
    found = [typed(kind, item, f"{key}[{place}]", first)
             for place, (kind, item) in enumerate(zip(kinds, value, strict=True), first)]  # fmt: skip
    return tuple(found) if origin is tuple else found


def _entries(kind: Any, value: Any, key: str, first: int) -> dict[str, Any]:
    for name in value:
        if not isinstance(name, str):
            raise UserError(f"{at(key, name)}: found this key, expected text in quotation marks")
    return {name: typed(kind, item, at(key, name), first) for name, item in value.items()}


def _plain(kind: Any, value: Any, key: str) -> Any:
    if kind in (int, float) and not (abs(value) < _LARGEST_NUMBER if isinstance(value, int) else math.isfinite(value)):
        raise _misfit(kind, value, key, " of at most 64 bits" if isinstance(value, int) else " that is finite")
    if kind in (str, Path) and "\0" in value:
        raise _misfit(kind, value, key, " without NUL characters")
    return kind(value) if kind in (float, Path) else value


def expected_of(kind: Any) -> str:
    """An annotation in words."""
    origin, of = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return str(of[1].expected)
    if origin is Literal:
        return f"one of {', '.join(map(str, of))}" if len(of) > 1 else str(of[0])
    if origin in _UNIONS:
        return " or ".join(dict.fromkeys(expected_of(option) for option in of))
    if origin in _LISTS:
        return f"a list ({expected_of(of[0])} each)"
    return _PLAIN[kind][1] if kind in _PLAIN else "a mapping of keys" if kind is not Any else "a value"


def _misfit(kind: Any, value: object, key: str, beyond: str = "") -> UserError:
    options = get_args(kind) if get_origin(kind) in _UNIONS else (kind,)
    unquoted = str in options and value is not None and not isinstance(value, str | list | dict)
    quotes = " in quotation marks" if unquoted else ""
    where = f"{key}: " if key else ""
    return UserError(f"{where}found {shown(value)}, expected {expected_of(kind)}{quotes}{beyond}")


def at(key: str, name: object) -> str:
    """A key below another in a message; a name that would not fit a line, or is no text, as Python writes it."""
    word = name if isinstance(name, str) and name.isprintable() and 0 < len(name) <= 60 else shown(name)
    return f"{key}.{word}" if key else str(word)
