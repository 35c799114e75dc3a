"""Ciphers: every letter stands for another, and only examples tell for which."""

from collections.abc import Callable
from functools import cache
from math import gcd

import numpy as np

from gpt_modules.data.episodes.families import by_hash
from gpt_modules.data.episodes.strings import IntArray, StringFamily, spell
from gpt_modules.data.splits import Split, split_of


class SubstitutionCipher(StringFamily):
    """A task is a permutation of the alphabet. Whoever has not seen its examples can only guess: 1 / `symbols`.

    A permutation validates or trains by its hash alone, so strings of another length are held out with it. Single
    letters (`length` 1) are drawn independently: a query whose letter was seen equals a support line, which measures
    how fast a model binds and not how it generalises. At length 2 or more queries are strings that were not seen.

    Args:
        symbols: Letters of the alphabet, 5 to 26.
        length: Letters of a string.
    """

    def __init__(self, symbols: int = 8, length: int = 1) -> None:
        super().__init__(symbols, length, fewest=(5, 1))  # of fewer than 5 letters no permutation hashes to validation

    def task(self, generator: np.random.Generator, split: Split) -> Callable[[IntArray], IntArray]:
        """A permutation of this split, uniform."""
        while True:
            images = generator.permutation(self.symbols)
            if split_of(spell(images[None])[0]) == split:
                return images.__getitem__


class AffineCipher(StringFamily):
    """A task is y = (a x + b) mod `symbols`, where a and `symbols` have no common divisor; Caesar's has a = 1.

    Two pairs of letters give a cipher away to whoever knows the rule. The plain text itself (a = 1, b = 0) is no task.
    Of 26 letters there are 311 ciphers, 25 of them shifts: few enough to be learned by heart.

    Args:
        symbols: Letters of the alphabet, 3 to 26.
        length: Letters of a string.
        shifts_only: Whether a = 1 always.
    """

    def __init__(self, symbols: int = 26, length: int = 4, shifts_only: bool = False) -> None:
        super().__init__(symbols, length, fewest=(3, 1))
        self.shifts_only = shifts_only

    def task(self, generator: np.random.Generator, split: Split) -> Callable[[IntArray], IntArray]:
        """A cipher of this split, uniform."""
        keys = _affine_keys(self.symbols, self.shifts_only)[split]
        a, b = keys[generator.integers(len(keys))]
        return lambda strings: (a * strings + b) % self.symbols


@cache
def _affine_keys(symbols: int, shifts_only: bool) -> dict[Split, list[tuple[int, int]]]:
    factors = [1] if shifts_only else [a for a in range(1, symbols) if gcd(a, symbols) == 1]
    return by_hash([(a, b) for a in factors for b in range(symbols) if (a, b) != (1, 0)])
