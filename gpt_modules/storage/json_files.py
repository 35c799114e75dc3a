"""Reading JSON that a program wrote and anybody may have changed: bounded, plain, and exact about what it refuses.

What is refused of its values, `strict_json` says; a plain `open` reads a pipe for ever.
"""

import json
from pathlib import Path
from typing import Any

from gpt_modules.errors import UserError
from gpt_modules.storage.strict_json import Refused, StrictDecoder

LARGEST = 1 << 26  # bytes; no document of a model, a run or a corpus comes near
_SHOWN = 60
_SPACE = " \t\r\n"


def read_json(path: Path, expected: str, largest: int = LARGEST) -> Any:
    """The value in a JSON file.

    Args:
        expected: what the file should be, for the message: "the configuration of a model".
        largest: bytes.

    Raises:
        UserError: one line, for a file that is missing, no file, larger, not UTF-8, not JSON (with its line), or with
            something that `strict_json` refuses.
    """
    text = read_text(path, expected, largest)
    try:
        return _value(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: found broken JSON ({error.msg}), expected {expected}") from error
    except Refused as error:
        raise UserError(f"{path}: found broken JSON ({error}), expected {expected}") from error


def read_text(path: Path, expected: str, largest: int = LARGEST) -> str:
    """The text of a file that is no larger than `largest` bytes, without its byte order mark.

    Raises:
        UserError: it is missing, no file, larger, not to be read, or not UTF-8 (with its line).
    """
    try:
        if path.exists() and not path.is_file():  # a pipe or a device would be read for ever
            raise UserError(f"{path}: found no file, expected {expected}")
        with path.open("rb") as file:
            data = file.read(largest + 1)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, expected {expected}") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{str(path)[:200]!r}: cannot be read ({reason}), expected {expected}") from error
    if len(data) > largest:
        raise UserError(f"{path}: found more than {largest:,} bytes, expected {expected}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: found bytes that are not UTF-8, expected {expected}") from error


def shown(value: object) -> str:
    """A value in an error message: as Python writes it, no longer than fits a line."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        return "a huge number"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _value(text: str) -> Any:
    """The one value that a text is."""
    value, end = StrictDecoder().decode(text, len(text) - len(text.lstrip(_SPACE)))
    if text[end:].strip(_SPACE):
        raise json.JSONDecodeError("more after the first value", text, end)
    return value
