"""The agreement of labelers to read: of one, of some, and of hundreds."""

import io
import json
import math

from rich.console import Console

from gpt_modules.feedback.agreement import Agreement, Statistics
from gpt_modules.feedback.table import MOST, json_of, table_of

NONE = Agreement(math.nan, math.nan, 0, 0)


def lines(found):
    console = Console(width=80, file=io.StringIO())
    console.print(table_of(found))
    return console.file.getvalue().splitlines()


def of_labelers(count):
    """The more votes, the less agreement."""
    return {f"labeler {i}": (i + 1, Agreement(0.9 - i / 1000, 0.01, 10, 5)) for i in range(count)}


def test_one_labeler_agrees_with_nobody():
    found = lines(Statistics(NONE, math.nan, {"ann": (3, NONE)}, {"rude": (0, math.nan)}))
    assert found[0].strip() == "No two labelers ordered the same answers"
    assert not any("nan" in line or "rude" in line for line in found)


def test_hundreds_are_a_page():
    found = lines(Statistics(Agreement(0.7, 0.01, 9, 5), 0.5, of_labelers(400), {"rude": (7, 0.25)}))
    assert len(found) < 32
    title = "Agreement 70.0% +- 1.0% of 9 pairs that both order, Krippendorff's alpha 0.500 (ordinal)"
    assert " ".join(" ".join(found[:2]).split()) == title
    assert "labeler 399" in found[5]
    votes = sum(range(1, 400 - MOST + 1))
    others = next(line for line in found if f"and {400 - MOST} others" in line)
    assert str(votes) in others
    assert "52.1% to 90.0%" in others
    assert "alpha 0.250" in found[-3]


def test_a_row_for_others_stands_for_two_at_least():
    for count in (MOST, MOST + 1):
        assert not any("and 1 others" in line for line in lines(Statistics(NONE, math.nan, of_labelers(count), {})))


def test_json_has_every_labeler_and_no_nan():
    found = json.loads(json_of(Statistics(NONE, math.nan, of_labelers(400), {})))
    assert len(found["labelers"]) == 400
    assert found["agreement"] == {"part": None, "error": None, "pairs": 0, "tasks": 0}
