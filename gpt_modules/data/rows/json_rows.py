"""Rows of JSON, read strictly (`storage.strict_json`): what is refused is so with its physical line, and anything after
a row's object too. Numbers keep how they are written: `str` of 2.50 is "2.50".
"""

import json
from collections.abc import Iterator
from pathlib import Path

from gpt_modules.data.rows.lines import text_blocks, text_lines
from gpt_modules.errors import UserError
from gpt_modules.storage.strict_json import Refused, StrictDecoder

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
        return _DECODER.decode(text, start)
    except json.JSONDecodeError as error:
        file, _, line = where.rpartition(":")
        lines, column = text.count("\n", start, error.pos), error.pos - text.rfind("\n", 0, error.pos)
        raise _broken(f"{file}:{int(line) + lines}", f"{error.msg.removesuffix(' at')} at column {column}") from error
    except Refused as error:
        raise _broken(where, str(error)) from error


def _whole(written: str) -> float:
    return WrittenFloat(written) if written == "-0" else int(written)


def _skip(text: str, place: int) -> int:
    while text[place : place + 1] and text[place] in _SPACE:
        place += 1
    return place


def _broken(where: str, what: str) -> UserError:
    return UserError(f"{where}: row: found broken JSON ({what}), expected one object")


_DECODER = StrictDecoder(WrittenFloat, _whole)
