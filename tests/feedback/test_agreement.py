"""Agreement of labelers, against counts by hand."""

import math

import pytest

from gpt_modules.feedback.agreement import pairwise, statistics
from gpt_modules.storage.comparisons import Answer, Ranking, Source


def vote(task: int, labeler: str, *ranks: int, flags: tuple[str, ...] = ()) -> Ranking:
    answers = tuple(Answer(f"answer {i}", Source("m"), True, i) for i in range(len(ranks)))
    none = (frozenset(),) * (len(ranks) - 1)
    return Ranking(task, 1, f"prompt {task}", labeler, answers, ranks, (None,) * len(ranks), (frozenset(flags), *none))


def test_pairs_that_both_order_are_counted_and_ties_are_not():
    tasks = [
        [vote(1, "ann", 1, 2, 3), vote(1, "ben", 1, 3, 2)],  # of 3 pairs 2 alike
        [vote(2, "ann", 1, 1, 2), vote(2, "ben", 2, 1, 3)],  # a tie: of 2 pairs 2 alike
        [vote(3, "ann", 1, 2, 3)],
    ]
    found = pairwise(tasks)
    assert (found.part, found.pairs, found.tasks) == (4 / 5, 5, 2)
    # Residuals 2 - 0.8 * 3 = -0.4 and 2 - 0.8 * 2 = 0.4; n / (n - 1) = 2; the root of 2 * 0.32 over 5 pairs.
    assert found.error == pytest.approx(math.sqrt(0.64) / 5)


def test_the_error_of_tasks_with_one_pair_each_is_that_of_a_part():
    n, alike = 50, 36
    tasks = [[vote(i, "ann", 1, 2), vote(i, "ben", *((1, 2) if i < alike else (2, 1)))] for i in range(n)]
    found = pairwise(tasks)
    part = alike / n
    assert found.error == pytest.approx(math.sqrt(part * (1 - part) / (n - 1)))


def test_one_against_the_others():
    rankings = [vote(1, "ann", 1, 2), vote(1, "ben", 1, 2), vote(1, "odd", 2, 1)]
    found = statistics(rankings, ())
    assert found.agreement.part == pytest.approx(1 / 3)
    assert {name: (votes, of.part) for name, (votes, of) in found.labelers.items()} == {
        "ann": (1, 0.5), "ben": (1, 0.5), "odd": (1, 0.0)
    }  # fmt: skip


def test_alpha_is_one_where_all_agree_and_near_nothing_by_chance():
    same = [vote(i, name, *ranks) for i, ranks in enumerate([(1, 2, 3), (3, 1, 2)]) for name in ("ann", "ben")]
    assert statistics(same, ()).alpha == pytest.approx(1.0)
    orders = [(1, 2), (2, 1)]
    chance = [vote(i, name, *orders[(i >> bit) % 2]) for i in range(64) for bit, name in ((0, "ann"), (1, "ben"))]
    assert abs(statistics(chance, ()).alpha) < 0.02


def test_flags_are_counted_and_compared():
    flagged = [vote(i, name, 1, 2, flags=("harmful",) if i % 2 else ()) for i in range(8) for name in ("ann", "ben")]
    given, alpha = statistics(flagged, ("harmful", "dull")).flags["harmful"]
    assert (given, alpha) == (8, pytest.approx(1.0))
    given, alpha = statistics(flagged, ("harmful", "dull")).flags["dull"]
    assert given == 0
    assert math.isnan(alpha)


def test_one_labeler_agrees_with_nobody():
    found = statistics([vote(1, "ann", 1, 2)], ())
    assert found.agreement.pairs == 0
    assert math.isnan(found.agreement.part)
    assert math.isnan(found.alpha)
