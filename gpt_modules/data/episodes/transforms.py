"""Transforms of sequences: two steps such as "sort, then swap neighbours", which only examples tell."""

from collections.abc import Callable
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np

from gpt_modules.data.episodes.families import by_hash
from gpt_modules.data.episodes.strings import IntArray, StringFamily
from gpt_modules.data.splits import Split


class Transform(NamedTuple):
    """Place i of the answer is place `places[i]` of the string, or of the sorted string where it `sorts`.

    All that reversing, rotating, sorting and copying can do, one after another, has this form, and just one, so equal
    transforms are equal tuples.
    """

    sorts: bool
    places: tuple[int, ...]

    def apply(self, strings: IntArray) -> IntArray:
        """Strings (n, length) to their answers."""
        return (np.sort(strings, axis=1) if self.sorts else strings)[:, list(self.places)]

    def then(self, second: "Transform") -> "Transform":
        """This one, and `second` on what it gives."""
        copies = len(set(self.places)) == 1  # one letter all over: no second step changes that
        if copies:
            return self
        if second.sorts:  # whatever the order was
            return second
        return Transform(self.sorts, tuple(self.places[place] for place in second.places))


class SequenceTransforms(StringFamily):
    """A task is one of the different compositions of two steps: reverse, sort, swap neighbours, swap the ends, every
    other letter first, rotate by k, or the n-th letter all over. What changes nothing is left out.

    Of 6 letters there are 67 such tasks: few enough to be learned by heart.

    Args:
        symbols: Letters of the alphabet, 2 to 26.
        length: Letters of a string, at least 3.
    """

    def __init__(self, symbols: int = 8, length: int = 6) -> None:
        super().__init__(symbols, length, fewest=(2, 3))

    def task(self, generator: np.random.Generator, split: Split) -> Callable[[IntArray], IntArray]:
        """A transform of this split, uniform over what they do."""
        transforms = _compositions(self.length)[split]
        return transforms[generator.integers(len(transforms))].apply


def steps(length: int) -> dict[str, Transform]:
    """The single steps on strings of so many letters, by name."""
    places = tuple(range(length))
    swapped = tuple(place ^ 1 if place ^ 1 < length else place for place in places)
    found = {"reverse": Transform(False, places[::-1]), "sort": Transform(True, places)}
    found["swap neighbours"] = Transform(False, swapped)
    found["swap the ends"] = Transform(False, (places[-1], *places[1:-1], places[0]))
    found["every other first"] = Transform(False, places[::2] + places[1::2])
    found |= {f"rotate by {k}": Transform(False, places[k:] + places[:k]) for k in places[1:]}
    return found | {f"copy letter {n + 1}": Transform(False, (n,) * length) for n in places}


@cache
def _compositions(length: int) -> dict[Split, list[Transform]]:
    pairs = product(steps(length).values(), repeat=2)
    composed = dict.fromkeys(first.then(second) for first, second in pairs)
    return by_hash([transform for transform in composed if transform != Transform(False, tuple(range(length)))])
