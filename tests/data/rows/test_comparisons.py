"""A store of comparisons as a source of ranked answers."""

from pathlib import Path

import pytest

from gpt_modules.commands.pipelines.provenance import content_digest
from gpt_modules.data.rows.sources import fingerprint, load_rows, load_splits
from gpt_modules.errors import UserError
from gpt_modules.storage.comparisons import Answer, ComparisonStore, Desk, Judgement, Source, Vote


@pytest.fixture
def path(tmp_path: Path) -> Path:
    store = ComparisonStore.create(tmp_path / "votes")  # known by its content, whatever its name
    number = store.round_of("first")
    for name in ("ann", "ben"):
        store.add_labeler(name, "person")
    for i in range(60):
        store.add_task(number, f"prompt {i}", [Answer(f"{text} {i}", Source("m")) for text in ("a", "b", "c")])
        vote(store, i + 1, "ann", [1, 2, 3])
    return tmp_path / "votes"


def vote(store: ComparisonStore, task: int, labeler: str, ranks: list[int]) -> None:
    answers = store.task(task).answers
    judgements = {answer.id: Judgement(rank) for answer, rank in zip(answers, ranks, strict=True)}
    store.vote(Vote(task, labeler, judgements, f"{task} {labeler} {ranks}"))


def test_each_vote_that_counts_is_a_row(path: Path) -> None:
    with ComparisonStore.open(path) as store:
        vote(store, 1, "ben", [2, 2, 1])
        vote(store, 2, "ann", [3, 2, 1])
    rows = load_rows(str(path), "train", "reward")
    assert len(rows) == 61
    of_task = {"prompt": "prompt 0", "responses": ["a 0", "b 0", "c 0"]}
    assert rows[:2] == [
        {**of_task, "ranking": [1, 2, 3], "labeler": "ann", "round": 1},
        {**of_task, "ranking": [2, 2, 1], "labeler": "ben", "round": 1},
    ]
    assert rows[2]["ranking"] == [3, 2, 1]


def test_both_labelers_of_a_prompt_are_on_one_side(path: Path) -> None:
    with ComparisonStore.open(path) as store:
        for task in range(1, 61):
            vote(store, task, "ben", [3, 1, 2])
    train, validation = load_splits(str(path), None, "reward", fraction=0.3)
    sides = [{row["prompt"] for row in rows} for rows in (train, validation)]
    assert not sides[0] & sides[1]
    assert len(train) == 2 * len(sides[0])
    assert len(validation) == 2 * len(sides[1])


@pytest.mark.parametrize(
    "digest", [lambda path: fingerprint(str(path), "train"), lambda path: content_digest(str(path))]
)
def test_a_new_vote_is_new_content_and_a_claim_is_not(path: Path, digest) -> None:
    before = digest(path)
    with Desk.open(path) as store:
        store.add_task(1, "not ranked yet", [Answer("a", Source("m")), Answer("b", Source("m"))])
        assert store.claim("ben", 60) is not None
        assert digest(path) == before
        vote(store, 1, "ben", [1, 2, 3])
    assert digest(path) != before


def test_what_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"votes: found comparisons, expected rows for this procedure"):
        load_rows(str(path), "train", "sft")
    ComparisonStore.create(tmp_path / "new.db").close()
    with pytest.raises(UserError, match=r"new.db: found no vote, expected at least one"):
        load_rows(str(tmp_path / "new.db"), "train", "reward")
