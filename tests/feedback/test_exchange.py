"""Votes out and in again, and what other projects wrote."""

import pytest

from gpt_modules.data.rows.fields import FieldError
from gpt_modules.data.rows.schemas import check_row
from gpt_modules.errors import UserError
from gpt_modules.feedback.exchange import bring_in, check_imported, exported
from gpt_modules.storage.comparisons import Answer, ComparisonStore, Judgement, Source, Vote, spelled


@pytest.fixture
def store(tmp_path):
    store = ComparisonStore.create(tmp_path / "c.db")
    number = store.round_of("first")
    store.add_task(number, "prompt", [Answer(text, Source("m")) for text in ("a", "b", "c")])
    store.add_labeler("ann", "person")
    judged = {1: Judgement(2, 4, frozenset({"harmful"})), 2: Judgement(1, 7), 3: Judgement(2)}
    store.vote(Vote(1, "ann", judged, "k"))
    return store


ASKED = [{"role": "user", "content": "Hi"}]


def asked(prompt="prompt", texts="abc", **more):
    return check_imported({"prompt": prompt, "responses": list(texts), "ranking": [*range(1, len(texts) + 1)], **more})


def test_a_row_with_a_tasks_answers_is_a_vote_on_it(store):
    """So that its agreement with people counts, and the answers keep their sources."""
    assert bring_in(store, [asked(texts="cab"), asked(texts="ab")], "file") == (2, 0, 0)
    first, joined, own = store.rankings()
    assert (first.task, first.labeler, joined.task, joined.labeler) == (1, "ann", 1, "file")
    assert [answer.source for answer in joined.answers] == [Source("m")] * 3
    assert joined.ranks == (2, 3, 1)
    assert (own.task, own.round, [answer.source.name for answer in own.answers]) == (2, 2, ["file", "file"])


def test_of_equal_tasks_the_rows_round_chooses_else_the_newest(store):
    answers = [Answer(text, Source("n")) for text in "abc"]
    for name in ("second", "third"):
        store.add_task(store.round_of(name), "prompt", answers)
    for labeler, more, number in (("a", {"round": 1}, 1), ("b", {"round": 2}, 2), ("c", {}, 3), ("d", {"round": 9}, 3)):
        bring_in(store, [asked(**more)], labeler)
        assert [found.round for found in store.rankings() if found.labeler == labeler] == [number]
    assert store.rounds() == [1, 2, 3]


def test_there_and_back_changes_nothing(store, tmp_path):
    """Rounds, models, conversations, and votes of every kind of labeler, the same answers in two rounds among them."""
    number = store.round_of("second")
    store.add_task(number, "prompt", [Answer(text, Source(f"m{text}")) for text in ("c", "b", "a")])
    store.add_task(number, "other", [Answer(text, Source("m")) for text in ("x", "y")])
    store.add_task(number, ASKED, [Answer(text, Source("m")) for text in ("x", "y")])
    store.add_task(number, spelled(ASKED).letters, [Answer(text, Source("m")) for text in ("x", "y")])
    store.add_labeler("rules", "scores", "by length")
    store.vote(Vote(4, "rules", {9: Judgement(2), 10: Judgement(1)}, "k4"))
    store.vote(Vote(5, "rules", {11: Judgement(1), 12: Judgement(2)}, "k5"))
    store.vote(Vote(2, "ann", {4: Judgement(1, 5), 5: Judgement(2, 4), 6: Judgement(3, 1)}, "k2"))
    store.vote(Vote(3, "rules", {7: Judgement(2), 8: Judgement(1)}, "k3"))
    out = list(exported(store.rankings(), store.kind_of))
    rows = [check_imported(row) for row in out]
    with ComparisonStore.create(tmp_path / "other.db") as other:
        assert bring_in(other, rows, "file") == (5, 0, 0)
        assert (other.kind_of("ann"), other.kind_of("rules")) == ("file", "scores")
        there = list(exported(other.rankings(), other.kind_of))
        people = {"person": "file"}
        assert there == [{**row, "labeler_kind": people.get(row["labeler_kind"], "scores")} for row in out]
        assert bring_in(other, rows, "file") == (0, 0, 5)
    assert bring_in(store, [check_imported(row) for row in there], "file") == (0, 0, 5)


def test_out_and_in_again_is_the_same_vote(store, tmp_path):
    (row,) = exported(store.rankings())
    voted = {"labeler": "ann", "round": 1, "scores": [4, 7, None]}
    assert check_row(row, "reward") == {"prompt": "prompt", "responses": list("abc"), "ranking": [2, 1, 2], **voted}
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
            {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes.", "rejected": "\n\nHuman: Hi\n\nAssistant: No."},
            {"messages": ASKED, "responses": ["Yes.", "No."], "ranking": [1, 2]},
        ),
        (
            {"messages": ASKED, "responses": ["a", "b"], "best": 1},
            {"messages": ASKED, "responses": ["a", "b"], "ranking": [2, 1]},
        ),
        (
            {"prompt": "p", "responses": ["a", "b", "a"], "best": 2},
            {"prompt": "p", "responses": ["a", "b", "a"], "ranking": [1, 2, 1]},
        ),
        (
            {"prompt": "p", "responses": ["a", "b", "c"], "ranking": [3, 2, 2], "best": 1},
            {"prompt": "p", "responses": ["a", "b", "c"], "ranking": [3, 2, 2]},
        ),
        (
            {"prompt": "p", "responses": ["a", "b"], "ranking": [2, 1], "labeler": "ann", "scores": [None, 7]},
            {"prompt": "p", "responses": ["a", "b"], "ranking": [2, 1], "labeler": "ann", "scores": [None, 7]},
        ),
    ],
)
def test_rows_of_each_kind(record, row):
    assert check_imported(record) == row


TWO = {"prompt": "p", "responses": ["a", "b"], "ranking": [1, 2]}
SAME = {"prompt": "p", "responses": ["a", "b", "a"], "ranking": [1, 2, 1]}


@pytest.mark.parametrize(
    ("record", "line"),
    [
        ({"prompt": "p", "responses": ["a", "b"], "best": 2}, "best: found the number 2, expected the number of a"),
        ({"prompt": "p", "responses": ["a", "b"], "best": True}, "best: found the truth value True, expected"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: b"}, "chosen: found 2 m"),
        ({"chosen": "no transcript", "rejected": "none"}, "prompt: found no such field among ['chosen', 'rejected'],"),
        ({**TWO, "best": 1}, "best: found 1, whose rank is 2, beside a ranking that begins with 0, expected one that"),
        ({**TWO, "ranking": None, "best": 0, "chosen": "a", "rejected": "b"}, "responses: found it beside chosen"),
        (
            {**SAME, "scores": [7, 1, 6]},
            "scores[2]: found 7 and 6 for the same answer, the text 'a', expected the same",
        ),
        ({**SAME, "scores": [7, 1, None]}, "scores[2]: found 7 and None for the same answer"),
        (
            {**SAME, "flags": [["x"], [], []]},
            "flags[2]: found ['x'] and [] for the same answer, the text 'a', expected",
        ),
        ({**TWO, "labeler_kind": "robot"}, "labeler_kind: found the text 'robot', expected person or scores or file"),
        ({**TWO, "round": 0}, "round: found the number 0, expected a whole number from 1"),
        ({**TWO, "round": True}, "round: found the truth value True, expected a whole number from 1"),
        ({**TWO, "models": ["m"]}, "models: found a list of 1, expected 2, one for each response"),
        ({**TWO, "models": ["m", 3]}, "models[1]: found the number 3, expected a name of up to 1000 printable"),
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


def test_a_mistake_brings_nothing_in(store):
    """Of other people and of scores nobody but themselves brings anything; a flag is one of the form's."""
    store.add_labeler("rules", "scores", "by length")
    for bad, line in (
        (asked(flags=[["evil"], [], []]), "flags: found 'evil', expected some of"),
        (asked(labeler="ann"), "labeler 'ann': found a person under this name, expected another name"),
        (asked(labeler="rules"), "labeler 'rules': found one that ranks by other scores under this name"),
        (asked(labeler="rules", labeler_kind="scores"), "labeler 'rules': found one that ranks by other scores"),
        (asked("more", labeler="file", labeler_kind="scores"), "labeler 'file': found one of imported votes under"),
    ):
        with pytest.raises(UserError, match=line):
            bring_in(store, [asked(), asked("new"), bad], "file")
        assert [found.labeler for found in store.rankings()] == ["ann"]
        assert len(list(store.tasks())) == 1
        assert store.kind_of("file") is None
