"""The best answers by votes."""

from pathlib import Path

import pytest

from gpt_modules.data.rows.schemas import check_row
from gpt_modules.errors import UserError
from gpt_modules.feedback.best import best_answers, of_one_labeler
from gpt_modules.storage.comparisons import Answer, Ranking, Source


def ranking(ranks, ended, labeler="judge", prompt="q"):
    answers = tuple(Answer(f"a{i}", Source("m"), whole) for i, whole in enumerate(ended))
    nothing = (None,) * len(ranks)
    return Ranking(1, 1, prompt, labeler, answers, tuple(ranks), nothing, (frozenset(),) * len(ranks))


@pytest.mark.parametrize(
    ("ranks", "ended", "best"),
    [
        ((2, 1, 3), (True, True, True), "a1"),
        ((2, 1, 3), (True, False, True), "a0"),
        ((2, 1, 1), (True, True, True), "a1"),
        ((1, 1, 1), (False, None, True), "a1"),
        ((1, 2), (False, False), None),
    ],
)
def test_the_best_of_those_that_came_to_their_end_and_of_equals_the_first(ranks, ended, best):
    expected = [] if best is None else [{"prompt": "q", "response": best}]
    assert list(best_answers([ranking(ranks, ended)])) == expected


def test_of_a_conversation_the_best_answer_alone_is_learned():
    asked = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Oh"},
        {"role": "user", "content": "?"},
    ]
    (row,) = best_answers([ranking((2, 1), (True, True), prompt=asked)])
    said = [*asked[:1], {**asked[1], "weight": 0}, asked[2], {"role": "assistant", "content": "a1"}]
    assert row == check_row({"messages": said}, "sft") == {"messages": said}


def test_one_labelers_votes():
    one, two = ranking((1, 2), (True, True), "one"), ranking((2, 1), (True, True), "two")
    assert of_one_labeler([one], None, Path("c.db")) == [one]
    assert of_one_labeler([one, two], "two", Path("c.db")) == [two]
    for rankings, name, line in (
        ([], None, r"^c\.db: found no vote, expected at least one$"),
        ([], "one", r"^c\.db: found no vote, expected at least one$"),
        (
            [one, two],
            None,
            "^--name: found none, expected one of the labelers one, two: they may think another",
        ),
        ([one], "two", "^--name: found 'two', expected a labeler with votes: one$"),
        ([ranking((1, 2), (True, True), f"l{i}") for i in range(5)], None, "labelers l0, l1, l2 and 2 others: they"),
    ):
        with pytest.raises(UserError, match=line):
            of_one_labeler(rankings, name, Path("c.db"))
