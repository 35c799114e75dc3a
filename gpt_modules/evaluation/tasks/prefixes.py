"""Which texts begin alike, and which of those beginnings are worth reading once for all of them.

The K demonstrations of a few-shot prompt stand in front of every item, a question in front of each of its answers, and
a text that another one begins with need not be read at all.
"""

from array import array
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

# Beginnings shorter than this much more than the last one shared gain nothing worth its bookkeeping.
_LEAST_GAIN = 16


class Strand(NamedTuple):
    """One text to read and all rows that are read with it: itself and those that it begins with.

    rows: their numbers, the longest first. length: tokens of the longest.
    """

    rows: list[int]
    length: int


class Branch(NamedTuple):
    """`depth` tokens that everything below begins with: strands to be read on from there, and longer beginnings."""

    depth: int
    row: int
    """The number of a row that begins with them."""
    strands: list[Strand]
    branches: list["Branch"]


def plan(rows: Sequence[list[int]], overhead: int, most: int) -> Branch:
    """How to read `rows` of token ids, as a tree whose root has depth 0.

    Args:
        overhead: Tokens that one more call of the model costs as much as; a beginning is shared where it saves more.
        most: Tokens that the beginnings held at the same time may have together, each counted from the first token.
    """
    keys = [array("i", row).tobytes() for row in rows]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    strands = _strands(keys, order)
    common = [_tokens_in_common(keys[a.rows[0]], keys[b.rows[0]]) for a, b in pairwise(strands)]
    root = Branch(0, 0, [], [])
    path = [(root, len(strands))]  # the branches that the place looked at lies on, and where each ends
    inner = sorted(_intervals(common), key=lambda interval: (interval[1], interval[0]), reverse=True)
    for place, strand in enumerate(strands):
        while path[-1][1] <= place:
            path.pop()
        while inner and inner[-1][1] == place:
            depth, _, end = inner.pop()
            gain, held = depth - path[-1][0].depth, sum(branch.depth for branch, _ in path)
            if gain >= _LEAST_GAIN and (end - place - 1) * gain > overhead and held + depth <= most:
                branch = Branch(depth, strand.rows[0], [], [])
                path[-1][0].branches.append(branch)
                path.append((branch, end))
        path[-1][0].strands.append(strand)
    return root


def _strands(keys: list[bytes], order: list[int]) -> list[Strand]:
    """In the order of their keys, in which a text stands right before those that begin with it."""
    strands: list[Strand] = []
    last = b""
    for row in reversed(order):
        if strands and last.startswith(keys[row]):
            strands[-1].rows.append(row)
        else:
            strands.append(Strand([row], len(keys[row]) // array("i").itemsize))
            last = keys[row]
    return strands[::-1]


def _tokens_in_common(left: bytes, right: bytes) -> int:
    width = min(len(left), len(right))
    differ = np.frombuffer(left[:width], np.intc) != np.frombuffer(right[:width], np.intc)
    return int(differ.argmax()) if differ.any() else len(differ)


def _intervals(common: list[int]) -> list[tuple[int, int, int]]:
    """(depth, begin, end): the texts begin, ..., end - 1 have `depth` tokens in common, and no neighbour has as many.

    Args:
        common: Tokens in common of each sorted text and the next one.
    """
    found: list[tuple[int, int, int]] = []
    unfinished: list[tuple[int, int]] = []
    for place, depth in enumerate([*common, 0]):
        begin = place
        while unfinished and unfinished[-1][0] > depth:
            deeper, begin = unfinished.pop()
            found.append((deeper, begin, place + 1))
        if not unfinished or unfinished[-1][0] < depth:
            unfinished.append((depth, begin))
    return found
