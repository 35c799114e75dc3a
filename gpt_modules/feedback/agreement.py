"""How far labelers agree with one another.

InstructGPT's labelers agree 72.6 +- 1.5 % of the time (Ouyang et al. 2022, section 3.4); how that was counted is not
published. Here: of all pairs of answers that two labelers of a task both put in an order, the part that they order
alike. The error is over tasks, as pairs of one task are not independent.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np

from gpt_modules.errors import UserError
from gpt_modules.storage.comparisons import Ranking

Level = Literal["nominal", "ordinal"]


@dataclass(frozen=True)
class Agreement:
    """Part of the pairs that are ordered alike, its standard error, and how many pairs and tasks it is of; NaN where
    there are too few.
    """

    part: float
    error: float
    pairs: int
    tasks: int


@dataclass(frozen=True)
class Statistics:
    """What the votes of a store say of their labelers.

    Args:
        agreement: of all labelers with one another.
        alpha: Krippendorff's, of ranks as ordinal numbers: 1 is perfect, 0 is chance.
        labelers: votes of each, and its agreement with the others.
        flags: how often each was given, and Krippendorff's alpha of it (nominal).
    """

    agreement: Agreement
    alpha: float
    labelers: dict[str, tuple[int, Agreement]]
    flags: dict[str, tuple[int, float]]


def statistics(rankings: Sequence[Ranking], form: Sequence[str]) -> Statistics:
    """All of it.

    Raises:
        UserError: the package krippendorff is not installed.
    """
    tasks = by_task(rankings)
    votes = {name: sum(found.labeler == name for found in rankings) for name in sorted({r.labeler for r in rankings})}
    flags = {}
    for flag in form:
        given = sum(flag in of for found in rankings for of in found.flags)
        flags[flag] = (given, _alpha(tasks, lambda found, i, flag=flag: float(flag in found.flags[i]), "nominal"))
    return Statistics(
        pairwise(tasks),
        _alpha(tasks, lambda found, i: float(found.ranks[i]), "ordinal"),
        {name: (count, pairwise(tasks, name)) for name, count in votes.items()},
        flags,
    )


def pairwise(tasks: Iterable[Sequence[Ranking]], of: str | None = None) -> Agreement:
    """Agreement of the labelers of each task; `of` one of them with the others."""
    alike, counted = [], []
    for rankings in tasks:
        found = [
            (a.ranks[i] < a.ranks[j]) == (b.ranks[i] < b.ranks[j])
            for a, b in combinations(rankings, 2)
            if of in (None, a.labeler, b.labeler)
            for i, j in combinations(range(len(a.ranks)), 2)
            if a.ranks[i] != a.ranks[j] and b.ranks[i] != b.ranks[j]
        ]
        if found:
            alike.append(sum(found))
            counted.append(len(found))
    pairs, n = sum(counted), len(counted)
    if not pairs:
        return Agreement(math.nan, math.nan, 0, 0)
    part = sum(alike) / pairs
    # Of a ratio of sums, by its residuals (Cochran 1977, chapter 6): tasks are the sample, pairs are its clusters.
    residuals = [a - part * c for a, c in zip(alike, counted, strict=True)]
    error = math.sqrt(n / (n - 1) * sum(r * r for r in residuals)) / pairs if n > 1 else math.nan
    return Agreement(part, error, pairs, n)


def by_task(rankings: Sequence[Ranking]) -> list[list[Ranking]]:
    tasks: dict[int, list[Ranking]] = defaultdict(list)
    for found in rankings:
        tasks[found.task].append(found)
    return list(tasks.values())


def _alpha(tasks: Sequence[Sequence[Ranking]], value: Callable[..., float], level: Level) -> float:
    """Krippendorff's alpha; an answer is a unit, a labeler a coder."""
    try:
        import krippendorff
    except ImportError as error:
        raise UserError(
            "--statistics: the package krippendorff is not installed; pip install 'gpt-modules[feedback]'"
        ) from error
    names = sorted({found.labeler for rankings in tasks for found in rankings})
    units = [(rankings, i) for rankings in tasks if len(rankings) > 1 for i in range(len(rankings[0].ranks))]
    table: Any = np.full((len(names), len(units)), np.nan)
    for column, (rankings, i) in enumerate(units):
        for found in rankings:
            table[names.index(found.labeler), column] = value(found, i)
    if len(np.unique(table[~np.isnan(table)])) < 2:
        return math.nan
    return float(krippendorff.alpha(reliability_data=table, level_of_measurement=level))
