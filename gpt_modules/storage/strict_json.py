"""The one reading of JSON: what two readers would read in two ways is refused.

Refused are a key that stands twice, NaN and Infinity, numbers beyond what a float holds, nesting beyond `DEPTH`, and
half a surrogate pair. Python's own reader lets the last of two equal keys win, takes NaN for a number, and turns 1e400
into infinity.
"""

import json
import math
from collections.abc import Callable
from typing import Any, NoReturn

from gpt_modules.errors import UserError

DEPTH = 100  # objects and lists inside one another
LONGEST = 300  # digits of a whole number: 10^308 is beyond a float, and Python reads 4300


class Refused(ValueError):
    """What is in a text that the grammar of JSON allows or Python reads, as the end of a message's "found"."""


class StrictDecoder:
    """Reads one value after another.

    Args:
        number: Makes a number of its spelling, where that has a point or an exponent.
        whole: The same of any other.
    """

    def __init__(self, number: Callable[[str], float] = float, whole: Callable[[str], float] = int) -> None:
        self._number, self._whole = number, whole
        self._decoder = json.JSONDecoder(
            object_pairs_hook=_once, parse_int=self._small, parse_float=self._finite, parse_constant=_constant
        )

    def decode(self, text: str, start: int = 0) -> tuple[Any, int]:
        """(the value that begins at `start`, the place behind it).

        Raises:
            json.JSONDecodeError: There is none.
            Refused: It is one that is refused.
        """
        try:
            value, end = self._decoder.raw_decode(text, start)
        except RecursionError as error:
            raise Refused(f"more than {DEPTH} objects and lists inside one another") from error
        _check(value, text, start, end)
        return value, end

    def _small(self, written: str) -> float:
        return self._whole(written) if len(written) <= LONGEST else self._finite(written)

    def _finite(self, written: str) -> float:
        number = self._number(written)
        if not math.isfinite(number):
            raise Refused(f"the number {written[:20]}{'...' * (len(written) > 20)}, too large for a float")
        return number


def only_value(body: bytes) -> object:
    """The one value that a request's body is.

    Raises:
        UserError: it is no JSON, or more than one.
    """
    try:
        text = body.decode().strip()
        value, end = StrictDecoder().decode(text)
        if end < len(text):
            raise Refused("more than one value")
    except (UnicodeDecodeError, json.JSONDecodeError, Refused) as error:
        raise UserError(f"body: found no JSON ({str(error)[:80]}), expected an object") from error
    return value


def _check(value: object, text: str, start: int, end: int) -> None:
    """What no hook of the parser sees; the text says whether it is worth a look."""
    if text.count("[", start, end) + text.count("{", start, end) > DEPTH and not _shallow(value, DEPTH):
        raise Refused(f"more than {DEPTH} objects and lists inside one another")
    if text.find("\\u", start, end) >= 0:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise Refused("half of a surrogate pair") from error


def _shallow(value: object, room: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return room > 0 and all(_shallow(item, room - 1) for item in inner)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for place, key in enumerate(keys) if key in keys[:place])
        raise Refused(f"the key {twice[:40]!r} twice")
    return found


def _constant(written: str) -> NoReturn:
    raise Refused(f"{written}, which JSON has not")
