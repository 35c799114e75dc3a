"""Texts as runs of words, each run one number: what near-duplicates and contamination are found by.

A word is what stands between white space, lower-cased, without its punctuation (Brown et al. 2020, appendix C), however
its letters are composed (`splits.normalise`). Runs are compared by a hash of 64 bits: among a billion different ones,
two meet with a probability of 3 %.
"""

import hashlib
import re
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpt_modules.data.splits import normalise

_CHUNK = re.compile(r"\S+")
_MARKS = re.compile(r"[\W_]+")
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no bit of a word is lost; so are the factors below
_MIXERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


class Words(NamedTuple):
    """The words of a text. hashes: (n,) uint64. spans: (n, 2) first character of each and the one after its last."""

    hashes: NDArray[np.uint64]
    spans: NDArray[np.int64]


def split_words(text: str) -> Words:
    """The words of a text; what is punctuation only is none."""
    found = [(_hash_word(match.group()), match.start(), match.end()) for match in _CHUNK.finditer(text)]
    kept = [(number, start, end) for number, start, end in found if number]
    numbers = np.array([number for number, _, _ in kept], dtype=np.uint64)
    return Words(numbers, np.array([span for _, *span in kept], dtype=np.int64).reshape(-1, 2))


def gram_hashes(words: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """A number for each run of `n` words, (len(words) - n + 1,), or none where there are fewer words."""
    count = len(words) - n + 1
    if count < 1:
        return np.empty(0, dtype=np.uint64)
    total = np.zeros(count, dtype=np.uint64)
    for i in range(n):
        total = total * _BASE + words[i : i + count]
    for factor, shift in zip(_MIXERS, (30, 27), strict=True):
        total = (total ^ (total >> np.uint64(shift))) * factor
    return total ^ (total >> np.uint64(31))


@lru_cache(maxsize=1 << 18)
def _hash_word(chunk: str) -> int:
    """0: no word."""
    word = _MARKS.sub("", normalise(chunk))
    return (
        int.from_bytes(hashlib.blake2b(word.encode(errors="replace"), digest_size=8).digest(), "little") if word else 0
    )
