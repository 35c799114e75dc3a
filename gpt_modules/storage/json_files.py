"""Reading JSON that a program wrote and anybody may have changed: bounded, plain, and exact about what it refuses.

What is refused of its values, `strict_json` says.
"""

import json
from pathlib import Path
from typing import Any

from gpt_modules.errors import UserError
from gpt_modules.storage.strict_json import Refused, StrictDecoder
from gpt_modules.storage.text_files import LARGEST, read_text

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
