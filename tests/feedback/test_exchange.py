"""Votes out and in again, and what other projects wrote."""

import pytest

from gpt_modules.data.rows.schemas import FieldError, check_row
from gpt_modules.errors import UserError
from gpt_modules.feedback.exchange import bring_in, check_imported, exported
from gpt_modules.storage.comparisons import Answer, ComparisonStore, Judgement, Source, Vote


@pytest.fixture
def store(tmp_path):
    store = ComparisonStore.create(tmp_path / "c.db")
    number = store.round_of("first")
    store.add_task(number, "prompt", [Answer(text, Source("m")) for text in ("a", "b", "c")])
    store.add_labeler("ann", "person")
    judged = {1: Judgement(2, 4, frozenset({"harmful"})), 2: Judgement(1, 7), 3: Judgement(2)}
    store.vote(Vote(1, "ann", judged, "k"))
    return store


def test_out_and_in_again_is_the_same_vote(store, tmp_path):
    (row,) = exported(store.rankings())
    assert check_row(row, "reward") == {"prompt": "prompt", "responses": ["a", "b", "c"], "ranking": [2, 1, 2]}
    with ComparisonStore.create(tmp_path / "other.db") as other:
        assert bring_in(other, [check_imported(row)], "file") == (1, 0, 0)
        assert bring_in(other, [check_imported(row)], "file") == (0, 0, 1)
        (found,) = other.rankings()
    (known,) = store.rankings()
    for name in ("prompt", "labeler", "ranks", "scores", "flags"):
        assert getattr(found, name) == getattr(known, name)


def test_another_ranking_of_the_same_answers_takes_its_place(tmp_path):
    with ComparisonStore.create(tmp_path / "c.db") as store:
        rows = [{"prompt": "p", "responses": list("ab"), "ranking": [1, 2]},
                {"prompt": "p", "responses": list("ba"), "ranking": [1, 2]},
                {"prompt": "p", "responses": list("ac"), "ranking": [1, 2]}]  # fmt: skip
        assert bring_in(store, [check_imported(row) for row in rows], "file") == (2, 1, 0)
        found = {tuple(a.text for a in r.answers): r.ranks for r in store.rankings()}
        assert found == {("a", "b"): (2, 1), ("a", "c"): (1, 2)}
        assert bring_in(store, [check_imported(row) for row in rows[1:]], "file") == (0, 0, 2)


@pytest.mark.parametrize(
    ("record", "row"),
    [
        (
            {"prompt": "p", "chosen": "good", "rejected": "bad"},
            {"prompt": "p", "responses": ["good", "bad"], "ranking": [1, 2]},
        ),
        (
            {"prompt": "p", "responses": ["a", "b", "c", "d"], "best": 2},
            {"prompt": "p", "responses": ["a", "b", "c", "d"], "ranking": [2, 2, 1, 2]},
        ),
        (
            {
                "chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: So.",
                "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: No.\n\nHuman: Oh",
            },
            {
                "prompt": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:",
                "responses": [" So.", " No.\n\nHuman: Oh"],
                "ranking": [1, 2],
            },
        ),
        (
            {"prompt": "p", "responses": ["a", "b"], "ranking": [2, 1], "labeler": "ann", "scores": [None, 7]},
            {"prompt": "p", "responses": ["a", "b"], "ranking": [2, 1], "labeler": "ann", "scores": [None, 7]},
        ),
    ],
)
def test_rows_of_each_kind(record, row):
    assert check_imported(record) == row


@pytest.mark.parametrize(
    ("record", "line"),
    [
        ({"prompt": "p", "responses": ["a", "b"], "best": 2}, "best: found the number 2, expected the number of a"),
        ({"prompt": "p", "responses": ["a", "b"], "best": True}, "best: found the truth value True, expected"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: b"}, "rejected: found the"),
        ({"chosen": "no transcript", "rejected": "none"}, "rejected: found the text 'none', expected a transcript"),
        ({"prompt": "p", "responses": ["a", "b"], "ranking": [1, 2], "scores": [1]}, "scores: found a list of 1, exp"),
        ({"prompt": "p", "responses": ["a", "b"], "ranking": [1, 2], "scores": [1, 8]}, "scores[1]: found the number"),
        ({"prompt": "p", "responses": ["a", "b"], "ranking": [1, 2], "flags": ["x", []]}, "flags[0]: found the text"),
        ({"prompt": "p", "responses": ["a", "b"], "ranking": [1, 2], "labeler": "a\nb"}, "labeler: found the text 'a"),
        ({"prompt": "p", "responses": ["a", "b"], "ranking": [1, 2], "labeler": 3}, "labeler: found the number 3"),
    ],
)
def test_what_fits_none_of_them(record, line):
    with pytest.raises(FieldError) as refused:
        check_imported(record)
    assert str(refused.value).startswith(line)


def test_ranks_of_any_size_count_the_better_answers(tmp_path):
    with ComparisonStore.create(tmp_path / "c.db") as store:
        row = {"prompt": "p", "responses": list("abcd"), "ranking": [7, 10**30, 7, 9]}
        assert bring_in(store, [check_imported(row)], "file") == (1, 0, 0)
        assert [found.ranks for found in store.rankings()] == [(1, 4, 1, 3)]


def test_what_the_store_refuses_is_found_before_the_first_vote(store, tmp_path):
    good = {"prompt": "p", "responses": ["a", "b"], "ranking": [1, 2]}
    for bad, line in (({"flags": [["evil"], []]}, "flags: found 'evil'"), ({"labeler": "ann"}, "found a person under")):
        with pytest.raises(UserError, match=line):
            bring_in(store, [check_imported(good), check_imported({**good, **bad})], "file")
    assert [found.labeler for found in store.rankings()] == ["ann"]
