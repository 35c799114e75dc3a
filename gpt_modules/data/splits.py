"""Which split a text belongs to: a function of the text alone, so that no run, order or growth of a file moves it.

Every hash split of the house is `split_of`. What a source holds out of rows that belong together (answers to one
prompt, pairs of one premise) is decided by what they share, with `hold_out`.
"""

import hashlib
import math
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

from gpt_modules.errors import UserError

Split = Literal["train", "validation"]
Row = dict[str, Any]


class PlacedRow(Row):
    """A row that says where it stands, file and line, for what is found out of it later than it is checked."""

    __slots__ = ("where",)

    def __init__(self, row: Row, where: str) -> None:
        super().__init__(row)
        self.where = where


T = TypeVar("T")

VALIDATION_FRACTION = 0.1
_VARIATION_SELECTORS = range(0xFE00, 0xFE10)
_GRAPHEME_JOINER = 0x034F


def split_of(text: str, fraction: float = VALIDATION_FRACTION) -> Split:
    """The split of a text: about `fraction` of all texts validate, and a text always does or never does."""
    return "validation" if hash_fraction(text) < fraction else "train"


def hold_out(
    items: Sequence[T], key: Callable[[T], str], fraction: float, where: str, least: int = 1
) -> tuple[list[T], list[T]]:
    """(training, validation) items, each by the split of its key, in their order.

    No number or order of items moves one of them, so the hash of few keys may leave a side empty: that is refused, and
    the line says which fraction would do.

    Args:
        items: What is parted.
        key: The text that decides; equal keys share a side.
        fraction: Of the keys, about so many validate.
        where: The source, and what is counted, for the error's line: "a.jsonl: different prompts".
        least: Different keys that either side needs.

    Raises:
        UserError: A side has fewer than `least` different keys.
    """
    keys = [key(item) for item in items]
    places = sorted({hash_fraction(text) for text in keys})
    held_out = sum(place < fraction for place in places)
    if len(places) < 2 * least:
        raise UserError(f"{where}: found {len(places)} to split, expected at least {2 * least}, or a validation source")
    if not least <= held_out <= len(places) - least:
        found = f"{held_out} of {len(places)} held out by hash with validation_fraction {fraction:g}"
        raise UserError(f"{where}: found {found}, expected {_fitting(places, least)}, or a validation source")
    sides = [split_of(text, fraction) for text in keys]
    train, validation = (
        [item for item, side in zip(items, sides, strict=True) if side == wanted] for wanted in ("train", "validation")
    )
    return train, validation


def hash_fraction(text: str) -> float:
    """A number in [0, 1) that is a function of the normalised text: what splits are made by."""
    return int.from_bytes(hashlib.sha256(normalise(text).encode()).digest()[:7]) / 2**56


def normalise(text: str) -> str:
    """The text without what does not make it another text to a reader: case, white space, how its letters are composed
    (Unicode's NFKC), and characters that do not show (zero-width spaces, soft hyphens, direction marks).
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        text = unicodedata.normalize("NFKC", text.translate(_SHOWN))
    return " ".join(text.lower().split())


class _Shown(dict[int, int | None]):
    """Characters that are seen, as they are met; formats, variation selectors and the grapheme joiner are None."""

    def __missing__(self, code: int) -> int | None:
        unseen = unicodedata.category(chr(code)) == "Cf" or code in _VARIATION_SELECTORS or code == _GRAPHEME_JOINER
        self[code] = None if unseen else code
        return self[code]


_SHOWN = _Shown()


def _fitting(places: Sequence[float], least: int) -> str:
    """The fractions, to as few digits as tell them, that leave `least` of these hashes (sorted) on either side."""
    for digits in range(2, 17):
        low, high = (math.floor(place * 10**digits) for place in (places[least - 1], places[-least]))
        if low < high:
            return f"a fraction of {(low + 1) / 10**digits:.{digits}f} to {high / 10**digits:.{digits}f}"
    return "a fraction between their hashes"
