"""Splits of small families: disjoint, about a tenth, blind to the order."""

import pytest

from gpt_modules.data.episodes.families import by_hash


@pytest.mark.parametrize(("count", "held_out"), [(2, 1), (9, 1), (40, 4), (1000, 100)])
def test_a_tenth_of_the_tasks_validates_and_at_least_one(count, held_out):
    split = by_hash(range(count))
    assert len(split["validation"]) == held_out
    assert sorted(split["train"] + split["validation"]) == list(range(count))


def test_the_order_of_the_tasks_does_not_matter():
    tasks = ["a", "b", "c", "d"]
    assert by_hash(tasks) == by_hash(tasks[::-1])


def test_a_single_task_cannot_be_split():
    with pytest.raises(ValueError, match="found 1 tasks, expected at least 2"):
        by_hash(["a"])
