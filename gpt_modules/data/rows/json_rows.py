"""JSON read strictly: what two readers would read in two ways is refused, with its physical line.

Refused are a key that stands twice, anything after the object, NaN and Infinity, numbers beyond what a float holds,
nesting beyond `DEPTH`, and half a surrogate pair. Numbers keep how they are written: `str` of 2.50 is "2.50".
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt_modules.data.rows.lines import text_blocks, text_lines
from gpt_modules.errors import UserError

DEPTH = 100  # objects and lists inside one another
_SPACE = " \t\r\n"


class WrittenFloat(float):
    """A number with a point or an exponent that knows how it was written."""

    written: str

    def __new__(cls, written: str) -> "WrittenFloat":
        number = super().__new__(cls, written)
        number.written = written
        return number

    def __str__(self) -> str:
        return self.written


class _Refused(ValueError):
    """What the parser finds in a record that is JSON, and may not be."""


def json_lines(path: Path) -> Iterator[tuple[int, object]]:
    """(physical line, record) of a file with one record a line; blank lines hold none.

    Raises:
        UserError: A line is no single JSON value.
    """
    for number, line in enumerate(text_lines(path), start=1):
        if line.strip():
            yield number, parse_json(line, f"{path}:{number}")


def json_list(path: Path) -> Iterator[tuple[int, object]]:
    """(physical line, record) of a file that is one list of records; of any other, as `json_lines`.

    Raises:
        UserError: The file is no JSON.
    """
    text = "".join(text_blocks(path))
    place, line = _skip(text, 0), 1
    if text[place : place + 1] != "[":
        yield from json_lines(path)
        return
    counted, place = 0, _skip(text, place + 1)
    while text[place : place + 1] != "]":
        line, counted = line + text.count("\n", counted, place), place
        record, place = _decode(text, place, f"{path}:{line}")
        yield line, record
        place = _skip(text, place)
        line, counted = line + text.count("\n", counted, place), place
        if text[place : place + 1] == "," and text[_skip(text, place + 1) :][:1] != "]":
            place = _skip(text, place + 1)
        elif text[place : place + 1] != "]":
            raise _broken(f"{path}:{line}", "a list whose rows no comma parts, or that does not end")
    if _skip(text, place + 1) < len(text):
        raise _broken(f"{path}:{line + text.count(chr(10), counted, _skip(text, place + 1))}", "more after the list")


def parse_json(text: str, where: str) -> object:
    """The one value that a text is.

    Raises:
        UserError: It is none, more than one, or has what is refused; `where` is the file and line.
    """
    start = _skip(text, 0)
    value, end = _decode(text, start, where)
    if (end := _skip(text, end)) < len(text):
        raise _broken(where, f"more after the first value, at column {end + 1}")
    return value


def _decode(text: str, start: int, where: str) -> tuple[object, int]:
    try:
        value, end = _DECODER.raw_decode(text, start)
        _check(value, text, start, end)
    except json.JSONDecodeError as error:
        file, _, line = where.rpartition(":")
        lines, column = text.count("\n", start, error.pos), error.pos - text.rfind("\n", 0, error.pos)
        raise _broken(f"{file}:{int(line) + lines}", f"{error.msg.removesuffix(' at')} at column {column}") from error
    except RecursionError as error:
        raise _broken(where, f"more than {DEPTH} objects and lists inside one another") from error
    except _Refused as error:
        raise _broken(where, str(error)) from error
    return value, end


def _check(value: object, text: str, start: int, end: int) -> None:
    """What no hook of the parser sees; the record's text says whether it is worth a look."""
    if text.count("[", start, end) + text.count("{", start, end) > DEPTH and not _shallow(value, DEPTH):
        raise _Refused(f"more than {DEPTH} objects and lists inside one another")
    if text.find("\\u", start, end) >= 0:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise _Refused("half of a surrogate pair") from error


def _shallow(value: object, room: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return room > 0 and all(_shallow(item, room - 1) for item in inner)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for place, key in enumerate(keys) if key in keys[:place])
        raise _Refused(f"the key {twice[:40]!r} twice")
    return found


def _whole(written: str) -> int | float:
    if len(written) > 300 or written == "-0":  # 10^308 is beyond a float; Python reads 4300 digits
        return _number(written)
    return int(written)


def _number(written: str) -> WrittenFloat:
    number = WrittenFloat(written)
    if not math.isfinite(number):
        raise _Refused(f"the number {written[:20]}{'...' * (len(written) > 20)}, too large for a float")
    return number


def _constant(written: str) -> float:
    raise _Refused(f"{written}, which JSON has not")


def _skip(text: str, place: int) -> int:
    while text[place : place + 1] and text[place] in _SPACE:
        place += 1
    return place


def _broken(where: str, what: str) -> UserError:
    return UserError(f"{where}: row: found broken JSON ({what}), expected one object")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_whole, parse_float=_number, parse_constant=_constant)
