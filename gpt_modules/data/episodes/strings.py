"""Families whose tasks turn a string of letters into another, written `bca>dab`."""

from abc import abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from gpt_modules.data.arguments import expect_whole
from gpt_modules.data.episodes.families import Episode, Example, Family
from gpt_modules.data.splits import Split
from gpt_modules.errors import expect

IntArray = NDArray[np.int64]
ALPHABET = 26
ARROW = ">"
_FIRST = ord("a")


class StringFamily(Family):
    """Tasks on strings of `length` out of the first `symbols` letters; letters are numbers from 0 inside.

    From length 2 on, the strings of an episode all differ where there are as many, so that a query is never a line of
    the support set. Single letters, and strings of which there are too few, are drawn independently of one another: a
    query that the support set holds asks for binding, not for generalisation.

    Args:
        symbols: Letters of the alphabet.
        length: Letters of a string.
        fewest: Least number of (symbols, letters of a string) that makes a task.

    Raises:
        UserError: A number out of range.
    """

    def __init__(self, symbols: int, length: int, fewest: tuple[int, int]) -> None:
        name = type(self).__name__
        expect(fewest[0] <= symbols <= ALPHABET, f"{name}: symbols", symbols, f"{fewest[0]} to {ALPHABET} letters")
        expect(length >= fewest[1], f"{name}: length", length, f"at least {fewest[1]} letters")
        expect_whole(1, **{f"{name}: length": length})
        self.symbols, self.length = symbols, length

    @abstractmethod
    def task(self, generator: np.random.Generator, split: Split) -> Callable[[IntArray], IntArray]:
        """A new task: strings (n, length) to their answers."""

    def episode(self, generator: np.random.Generator, split: Split, support: int, query: int) -> Episode:
        """A new task on strings drawn uniformly."""
        task = self.task(generator, split)
        strings = draw_strings(generator, self.symbols, self.length, support + query)
        answers = spell(task(parse(strings)))
        examples = [Example(string + ARROW, answer) for string, answer in zip(strings, answers, strict=True)]
        return Episode(examples[:support], examples[support:])


def draw_strings(generator: np.random.Generator, symbols: int, length: int, count: int) -> list[str]:
    """`count` strings: without replacement where they are of 2 letters or more and there are so many."""
    drawn = spell(generator.integers(symbols, size=(count, length)))
    if length == 1 or symbols**length < count:
        return drawn
    found = dict.fromkeys(drawn)
    while len(found) < count:
        found |= dict.fromkeys(spell(generator.integers(symbols, size=(count, length))))
    return list(found)[:count]


def spell(strings: IntArray) -> list[str]:
    """Numbers (n, length) as n strings of letters, 0 as `a`."""
    text, length = (strings + _FIRST).astype(np.uint8).tobytes().decode("ascii"), strings.shape[1]
    return [text[start : start + length] for start in range(0, len(text), length)]


def parse(strings: Sequence[str]) -> IntArray:
    """The inverse of `spell`, for strings of one length."""
    codes = np.frombuffer("".join(strings).encode("ascii"), dtype=np.uint8).astype(np.int64)
    return codes.reshape(len(strings), -1) - _FIRST
