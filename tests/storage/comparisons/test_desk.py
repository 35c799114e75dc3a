"""People at one store at once: a task is claimed by one at a time, and each is voted on as often as was asked."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gpt_modules.storage.comparisons import Answer, Desk, Judgement, Source, Vote, Wanted

MODEL = Source("runs/sft/export")
TWO = Wanted(votes=2)


def filled(path: Path, tasks: int = 3, answers: int = 3) -> Desk:
    store = Desk.create(path)
    number = store.round_of("first")
    for i in range(tasks):
        store.add_task(number, f"prompt {i}", [Answer(f"answer {j}", MODEL) for j in range(answers)])
    for name in ("ann", "ben", "cleo"):
        store.add_labeler(name, "person")
    return store


def ranked(store: Desk, task: int, labeler: str, ranks: list[int], key: str = "", seconds: float | None = None) -> Vote:
    answers = store.task(task).answers
    judgements = {answer.id: Judgement(rank) for answer, rank in zip(answers, ranks, strict=True)}
    return Vote(task, labeler, judgements, key or f"{task} {labeler} {ranks}", seconds)


def test_a_withdrawn_vote_frees_its_task(tmp_path: Path) -> None:
    store = filled(tmp_path / "c.db", tasks=1)
    store.vote(ranked(store, 1, "ann", [1, 2, 3]))
    assert store.claim("ann", 60) is None
    store.withdraw(1, "ann")
    assert list(store.rankings()) == []
    assert store.claim("ann", 60) == store.task(1)


def test_a_skip_is_no_ranking_and_leaves_the_task_to_others(tmp_path: Path) -> None:
    store = filled(tmp_path / "c.db", tasks=1)
    store.vote(Vote(1, "ann", {}, "skip"))
    assert list(store.rankings()) == []
    assert store.claim("ann", 60) is None
    assert store.claim("ben", 60) == store.task(1)


def test_a_claim_is_held_and_runs_out(tmp_path: Path) -> None:
    store = filled(tmp_path / "c.db", tasks=2)
    first = store.claim("ann", 60)
    assert first is not None
    assert store.claim("ann", 60) == first  # a page that is loaded again
    second = store.claim("ben", -1)  # has run out at once
    assert second is not None
    assert second != first
    store.vote(ranked(store, first.id, "ann", [1, 2, 3]))
    assert store.claim("ann", 60) == second


def test_a_share_of_two_goes_to_two_people(tmp_path: Path) -> None:
    store = filled(tmp_path / "c.db", tasks=1)
    store.vote(ranked(store, 1, "ann", [1, 2, 3]))
    assert store.claim("ben", 60, Wanted()) is None
    assert store.claim("ben", 60, TWO) == store.task(1)
    assert store.claim("cleo", 60, TWO) is None


def test_eight_labelers_at_once_vote_on_each_task_twice(tmp_path: Path) -> None:
    store = filled(tmp_path / "c.db", tasks=40, answers=2)
    names = [f"labeler {i}" for i in range(8)]
    for name in names:
        store.add_labeler(name, "person")
    store.close()

    def work(name: str) -> int:
        done = 0
        with Desk.open(tmp_path / "c.db") as own:
            while (task := own.claim(name, 600, TWO)) is not None:
                own.vote(ranked(own, task.id, name, [1, 2]))
                done += 1
        return done

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, names)) == 80
    with Desk.open(tmp_path / "c.db", writing=False) as reader:
        tasks = [found.task for found in reader.rankings()]
    assert sorted(tasks) == [i for i in range(1, 41) for _ in range(2)]


def test_a_share_of_the_tasks_is_wanted_once_more_and_always_the_same(tmp_path: Path) -> None:
    store = filled(tmp_path / "c.db", tasks=200, answers=2)
    for task in store.tasks():
        store.vote(ranked(store, task.id, "ann", [1, 2]))
    assert store.standing("ben", Wanted()).open == 0
    open_to = {share: store.standing("ben", Wanted(overlap=share)).open for share in (0.2, 0.5, 1.0)}
    assert 20 < open_to[0.2] < 60
    assert 70 < open_to[0.5] < 130
    assert open_to[1.0] == 200
    first = store.claim("ben", 60, Wanted(overlap=0.2))
    with filled(tmp_path / "again.db", tasks=200, answers=2) as again:
        for task in again.tasks():
            again.vote(ranked(again, task.id, "cleo", [2, 1]))
        assert again.claim("ben", 60, Wanted(overlap=0.2)) == first


def test_what_models_ranked_is_still_to_be_ranked_by_people(tmp_path: Path) -> None:
    store = filled(tmp_path / "c.db", tasks=1)
    store.add_labeler("rules", "scores")
    store.add_labeler("rows.jsonl", "file")
    store.vote(ranked(store, 1, "rules", [1, 2, 3]))
    assert store.claim("ann", 60) == store.task(1)
    store.vote(ranked(store, 1, "rows.jsonl", [1, 2, 3]))
    assert store.claim("ben", 60) is None


def test_the_tasks_of_a_round_alone(tmp_path: Path) -> None:
    store = filled(tmp_path / "c.db", tasks=1)
    second = store.add_task(store.round_of("second"), "new", [Answer("a", MODEL), Answer("b", MODEL)])
    assert second is not None
    assert store.claim("ann", 60) == store.task(1)
    assert store.claim("ann", 60, Wanted(round=2)) == store.task(second)
    assert store.claim("ben", 60, Wanted(round=2)) is None
    assert store.standing("ben", Wanted(round=2)) == (0, 0, 0, 1, None)


def test_a_vote_taken_back_is_shown_again_and_its_task_kept_for_its_labeler(tmp_path: Path) -> None:
    store = filled(tmp_path / "c.db")
    vote = ranked(store, 1, "ann", [2, 1, 3], seconds=5.0)
    store.vote(vote)
    assert store.claim("ann", 60) == store.task(2)
    assert store.take_back(1, "ann", 60) == vote
    assert list(store.rankings()) == []
    assert store.claim("ann", 60) == store.task(1)
    assert store.claim("ben", 60) == store.task(2)  # no longer held by ann
    assert store.take_back(1, "ann", 60) == vote  # a page that asks again
    assert store.take_back(2, "ann", 60) is None
    store.vote(ranked(store, 1, "ann", [1, 2, 3]))
    assert [found.ranks for found in store.rankings()] == [(1, 2, 3)]


def test_how_a_labeler_stands(tmp_path: Path) -> None:
    store = filled(tmp_path / "c.db", tasks=6)
    for task, seconds in ((1, 4.0), (2, 10.0), (3, 30.0), (4, None)):
        store.vote(ranked(store, task, "ann", [1, 2, 3], seconds=seconds))
    store.vote(Vote(5, "ann", {}, "skip", 1.0))
    store.claim("ben", 60)
    assert store.standing("ann") == (4, 1, 1, 0, 10.0)
    assert store.standing("ben") == (0, 0, 2, 0, None)
    assert store.standing("cleo") == (0, 0, 1, 1, None)
    store.vote(ranked(store, 1, "ann", [3, 2, 1], seconds=20.0))
    assert store.standing("ann").seconds == 20.0
    store.withdraw(2, "ann")
    assert store.standing("ann").seconds == 25.0


def test_ones_own_votes_newest_first(tmp_path: Path) -> None:
    store = filled(tmp_path / "c.db")
    store.vote(ranked(store, 1, "ann", [1, 2, 3]))
    store.vote(Vote(2, "ann", {}, "skip"))
    store.vote(ranked(store, 3, "ben", [1, 2, 3]))
    assert [(own.task, own.prompt, own.skipped) for own in store.own_votes("ann")] == [
        (2, "prompt 1", True), (1, "prompt 0", False)
    ]  # fmt: skip
    store.vote(ranked(store, 1, "ann", [3, 2, 1]))
    assert [own.task for own in store.own_votes("ann")] == [1, 2]


def test_what_others_ranked_too(tmp_path: Path) -> None:
    store = filled(tmp_path / "c.db")
    store.add_labeler("rules", "scores")
    for task, labeler in ((1, "ann"), (1, "ben"), (1, "rules"), (2, "ann"), (2, "rules"), (3, "ben"), (3, "cleo")):
        store.vote(ranked(store, task, labeler, [1, 2, 3]))
    assert [[(found.task, found.labeler) for found in of] for of in store.shared("ann")] == [[(1, "ann"), (1, "ben")]]


def test_the_secret_of_a_file_stays_and_is_its_own(tmp_path: Path) -> None:
    secret = filled(tmp_path / "c.db").secret()
    with Desk.open(tmp_path / "c.db") as again, filled(tmp_path / "other.db") as other:
        assert again.secret() == secret != other.secret()
