"""Which split a text belongs to: a function of the text alone, so that no run, order or growth of a file moves it."""

import hashlib
from typing import Any, Literal

Split = Literal["train", "validation"]
Row = dict[str, Any]

VALIDATION_FRACTION = 0.1


def hash_fraction(text: str) -> float:
    """A number in [0, 1) that is a function of the text but for case and spaces: what splits are made by."""
    return int.from_bytes(hashlib.sha256(normalise(text).encode()).digest()[:7]) / 2**56


def normalise(text: str) -> str:
    """The text without what does not make it another text: case and spaces."""
    return " ".join(text.lower().split())
