"""Reading JSON that a program wrote and anybody may have changed: bounded, plain, and exact about what it refuses.

Python's own reader lets the last of two equal keys win, takes NaN and Infinity for numbers, turns 1e400 into infinity,
and reads a pipe for ever.
"""

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from gpt_modules.errors import UserError

LARGEST = 1 << 26  # bytes; no document of a model, a run or a corpus comes near
_SHOWN = 60


class _RefusedValue(ValueError):
    """What the grammar of JSON allows, or Python reads, and no document of ours may say."""


def read_json(path: Path, expected: str, largest: int = LARGEST) -> Any:
    """The value in a JSON file.

    Args:
        expected: what the file should be, for the message: "the configuration of a model".
        largest: bytes.

    Raises:
        UserError: one line, for a file that is missing, no file, larger, not UTF-8, not JSON (with its line), nested
            too deeply, or that has a key twice, a number that is not finite, or text that is no Unicode.
    """
    text = read_text(path, expected, largest)
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_float=_finite, parse_constant=_constant)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: found broken JSON ({error.msg}), expected {expected}") from error
    except _RefusedValue as error:
        raise UserError(f"{path}: {error}") from error
    except UnicodeEncodeError as error:
        raise UserError(f"{path}: found half of a surrogate pair, expected text that is Unicode") from error
    except (ValueError, RecursionError) as error:
        what = "nesting" if isinstance(error, RecursionError) else "a whole number"
        raise UserError(f"{path}: found {what} too large to read, expected {expected}") from error
    return value


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


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _RefusedValue(f"{shown(twice)}: found this key twice, expected it once")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _RefusedValue(f"found {text[:_SHOWN]}, expected numbers that a float64 can hold")
    return number


def _constant(name: str) -> NoReturn:
    raise _RefusedValue(f"found {name}, expected finite numbers only")
