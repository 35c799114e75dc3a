"""Votes: kept once, superseded and never deleted."""

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from gpt_modules.errors import UserError
from gpt_modules.storage.comparisons import (
    Answer,
    ComparisonStore,
    Desk,
    Judgement,
    Source,
    Vote,
    spelled,
    votes_digest,
)

MODEL = Source("runs/sft/export", "a" * 64, '{"temperature": 1.0}')


def filled(path: Path, tasks: int = 3, answers: int = 3) -> ComparisonStore:
    store = ComparisonStore.create(path)
    number = store.round_of("first")
    for i in range(tasks):
        store.add_task(number, f"prompt {i}", [Answer(f"answer {j}", MODEL, j > 0) for j in range(answers)])
    store.add_labeler("ann", "person")
    store.add_labeler("ben", "person")
    return store


def ranked(store: ComparisonStore, task: int, labeler: str, ranks: list[int], key: str = "") -> Vote:
    answers = store.task(task).answers
    judgements = {answer.id: Judgement(rank) for answer, rank in zip(answers, ranks, strict=True)}
    return Vote(task, labeler, judgements, key or f"{task} {labeler} {ranks}")


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    store = filled(tmp_path / "c.db")
    first, *_ = store.tasks()
    judgements = {
        answer.id: Judgement(rank, 8 - rank, frozenset({"harmful"} if rank == 2 else ()))
        for answer, rank in zip(first.answers, [2, 1, 2], strict=True)
    }
    store.vote(Vote(first.id, "ann", judgements, "k", 4.5, "a note"))
    with ComparisonStore.open(tmp_path / "c.db", writing=False) as reader:
        assert reader.vote_of(first.id, "ann") == Vote(first.id, "ann", judgements, "k", 4.5, "a note")
        (found,) = reader.rankings()
    assert (found.prompt, found.labeler, found.round, found.ranks) == ("prompt 0", "ann", 1, (2, 1, 2))
    assert found.scores == (6, 7, 6)
    assert found.flags == (frozenset({"harmful"}), frozenset(), frozenset({"harmful"}))
    assert [(a.text, a.source, a.ended) for a in found.answers] == [
        ("answer 0", MODEL, False), ("answer 1", MODEL, True), ("answer 2", MODEL, True)
    ]  # fmt: skip


def test_a_later_vote_counts_and_the_earlier_one_stays(tmp_path: Path) -> None:
    store = filled(tmp_path / "c.db")
    store.vote(ranked(store, 1, "ann", [1, 2, 3]))
    store.vote(ranked(store, 1, "ann", [3, 2, 1]))
    store.vote(ranked(store, 1, "ann", [3, 2, 1]))  # the same key: a page that sends it again
    assert [found.ranks for found in store.rankings()] == [(3, 2, 1)]
    rows = sqlite3.connect(tmp_path / "c.db").execute("SELECT superseded IS NULL FROM votes ORDER BY id").fetchall()
    assert rows == [(0,), (1,)]


def test_a_withdrawn_vote_and_a_skip_are_no_rankings(tmp_path: Path) -> None:
    store = filled(tmp_path / "c.db", tasks=2)
    store.vote(ranked(store, 1, "ann", [1, 2, 3]))
    store.withdraw(1, "ann")
    store.vote(Vote(2, "ann", {}, "skip"))
    assert list(store.rankings()) == []


def test_a_key_is_of_one_vote(tmp_path: Path) -> None:
    store = filled(tmp_path / "c.db")
    store.vote(ranked(store, 1, "ann", [1, 2, 3], "k"))
    others = [(1, "ann", [2, 1, 3]), (1, "ben", [1, 2, 3]), (2, "ann", [1, 2, 3])]
    for other in others:
        with pytest.raises(UserError, match=r"c.db: key: found 'k' on another vote, expected a new one"):
            store.vote(ranked(store, *other, "k"))
    assert [(found.task, found.labeler, found.ranks) for found in store.rankings()] == [(1, "ann", (1, 2, 3))]


@pytest.mark.parametrize(
    ("given", "kept"),
    [([4, 4, 4], (1, 1, 1)), ([2, 3, 3], (1, 2, 2)), ([1, 1, 2], (1, 1, 3)), ([10**30, 7, 9], (3, 1, 2))],
)
def test_ranks_say_an_order_whoever_gave_them(tmp_path: Path, given: list[int], kept: tuple[int, ...]) -> None:
    """Page, import and scores all come through here; a retry of the same ranks is the same vote."""
    store = filled(tmp_path / "c.db")
    for _ in range(2):
        store.vote(ranked(store, 1, "ann", given, "k"))
    assert [found.ranks for found in store.rankings()] == [kept]


def test_what_is_written_together_is_all_there_or_nothing(tmp_path: Path) -> None:
    store = filled(tmp_path / "c.db")

    def three() -> None:
        with store.together():
            store.vote(ranked(store, 1, "ann", [1, 2, 3]))
            store.add_labeler("new", "file")
            store.vote(Vote(2, "ann", {1: Judgement(1)}, "k"))

    with pytest.raises(UserError, match="found judgements"):
        three()
    assert (list(store.rankings()), store.kind_of("new")) == ([], None)
    with store.together():
        store.vote(ranked(store, 1, "ann", [1, 2, 3]))
        with ComparisonStore.open(tmp_path / "c.db") as other:
            assert list(other.rankings()) == []
    assert len(list(store.rankings())) == 1


def test_confirmed_votes_outlive_a_kill(tmp_path: Path) -> None:
    store = filled(tmp_path / "c.db", tasks=200, answers=2)
    store.close()
    script = """
        import sys
        from pathlib import Path
        from gpt_modules.storage.comparisons import ComparisonStore, Judgement, Vote
        store = ComparisonStore.open(Path(sys.argv[1]))
        for task in list(store.tasks()):
            judgements = {answer.id: Judgement(rank) for rank, answer in enumerate(task.answers, start=1)}
            store.vote(Vote(task.id, "ann", judgements, str(task.id)))
            print(task.id, flush=True)
    """
    words = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "c.db")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ}) as process:
        assert process.stdout is not None
        confirmed = [int(process.stdout.readline()) for _ in range(20)]
        process.send_signal(signal.SIGKILL)
        confirmed += [int(line) for line in process.stdout.read().split()]
    with ComparisonStore.open(tmp_path / "c.db") as reader:
        kept = [found.task for found in reader.rankings()]
    assert confirmed == kept[: len(confirmed)]
    assert len(kept) <= len(confirmed) + 1  # one may have been kept before it was confirmed


@pytest.mark.parametrize(
    ("judgements", "message"),
    [
        ({1: Judgement(1)}, r"c.db: task 1: found judgements of the answers \[1\], expected \[1, 2\]"),
        ({1: Judgement(0), 2: Judgement(1)}, "answer 1: found the rank 0, expected a number from 1, which is best"),
        ({1: Judgement(1, 8), 2: Judgement(1)}, "answer 1: found the score 8, expected 1 to 7"),
        ({1: Judgement(1, flags=frozenset({"dull"})), 2: Judgement(1)}, "answer 1: found the flag 'dull', expected"),
    ],
)
def test_a_vote_that_does_not_fit(tmp_path: Path, judgements: dict[int, Judgement], message: str) -> None:
    store = filled(tmp_path / "c.db", answers=2)
    with pytest.raises(UserError, match=message):
        store.vote(Vote(1, "ann", judgements, "k"))
    assert list(store.rankings()) == []


def test_a_round_is_one_way_of_sampling(tmp_path: Path) -> None:
    store = filled(tmp_path / "c.db")
    answers = [Answer("a", MODEL), Answer("b", MODEL)]
    assert (store.round_of("second"), store.round_of("first"), store.rounds()) == (2, 1, [1, 2])
    assert store.add_task(2, "prompt 0", answers) == 4
    assert store.add_task(2, "prompt 0", answers[::-1]) is None
    assert store.tasks_of("prompt 0", ["b", "a"]) == [store.task(4)]
    assert store.tasks_of("prompt 1", ["b", "a"]) == []
    assert store.add_task(2, "prompt 0", [*answers, Answer("c", MODEL)]) == 5
    assert store.prompts(2) == {spelled("prompt 0")}
    assert [task.prompt for task in store.tasks(1)] == ["prompt 0", "prompt 1", "prompt 2"]


def test_the_same_answer_twice_is_no_choice(tmp_path: Path) -> None:
    store = filled(tmp_path / "c.db")
    with pytest.raises(UserError, match="found 1 different texts of 2 answers, expected at least 2"):
        store.add_task(1, "new", [Answer("same", MODEL), Answer("same", Source("other"))])


def test_the_digest_is_of_the_votes_that_count(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    store = filled(path)
    empty = votes_digest(path)
    with Desk.open(path) as desk:
        desk.claim("ben", 60)
    store.add_task(1, "another", [Answer("a", MODEL), Answer("b", MODEL)])
    assert votes_digest(path) == empty
    store.vote(ranked(store, 1, "ann", [1, 2, 3]))
    one = votes_digest(path)
    store.vote(ranked(store, 1, "ann", [2, 1, 3]))
    assert len({empty, one, votes_digest(path)}) == 3
    store.vote(ranked(store, 1, "ann", [1, 2, 3], "back again"))
    assert votes_digest(path) == one


def test_a_name_is_of_one_labeler(tmp_path: Path) -> None:
    store = filled(tmp_path / "c.db")
    store.add_labeler("judge", "scores", "model a")
    store.add_labeler("judge", "scores", "model a")
    for kind, settings in (("scores", "model b"), ("person", "")):
        with pytest.raises(UserError, match="labeler 'judge': found one that ranks by other scores under this name"):
            store.add_labeler("judge", kind, settings)  # type: ignore[arg-type]
