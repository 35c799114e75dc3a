"""A round's votes: who gives them, when there are enough, and what is kept of them."""

import json
import sqlite3
import uuid
from pathlib import Path

import pytest

from gpt_modules.commands.pipelines.document import Pipeline, Stage
from gpt_modules.commands.pipelines.labelling import LabelPlan
from gpt_modules.commands.pipelines.steps import steps_of
from gpt_modules.errors import UserError
from gpt_modules.storage.comparisons import Answer, ComparisonStore, Judgement, Source, Vote
from gpt_modules.storage.summary import read_summary

TASKS = 4


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    with ComparisonStore.create(Path("runs/comparisons.db")) as store:
        for number in (1, 2):
            store.round_of("sampling", f"round-{number}")
            for task in range(TASKS):
                answers = [Answer(f" {text} {task}", Source("m")) for text in ("a", "b", "c")]
                store.add_task(number, f"prompt {number}", answers)


def plan(turn=1, feeds=None, **options):
    compare = Stage("compare", None, "compare", {}, {"count": TASKS})
    stages = [compare, Stage("label", None, "label", feeds or {}, options)]
    pipeline = Pipeline(Path("runs"), [], 2, stages)
    (step,) = [step for step in steps_of(pipeline) if step.name == f"round-{turn}/label"]
    return LabelPlan(step, pipeline)


def vote(turn, *judged, labeler="Ada", kind="person"):
    """The labeler's ranks on the round's first tasks; None skips."""
    with ComparisonStore.open(Path("runs/comparisons.db")) as store:
        store.add_labeler(labeler, kind)
        for task, ranks in zip(store.tasks(turn), judged, strict=False):
            judgements = {} if ranks is None else {
                answer.id: Judgement(rank) for answer, rank in zip(task.answers, ranks, strict=True)
            }  # fmt: skip
            store.vote(Vote(task.id, labeler, judgements, uuid.uuid4().hex))


def test_people_are_waited_for_until_all_is_answered_or_it_is_enough():
    words = "gpt label runs/comparisons.db --round 1"
    assert plan().words() == []
    assert plan().waiting() == f"4 of 4 tasks wait to be ranked: {words}"
    vote(1, [1, 2, 3], None)  # one that is skipped is answered, too
    vote(2, [1, 2, 3])  # another round's
    vote(1, *[[1, 2, 3]] * TASKS, labeler="a model", kind="scores")  # who is no person
    assert plan().waiting() == f"2 of 4 tasks wait to be ranked: {words}"
    assert plan(enough=3).waiting() == f"2 of 4 tasks wait to be ranked (2 until it is enough): {words}"
    assert plan(enough=1).waiting() is None
    vote(1, [1, 2, 3], [1, 2, 3], labeler="Bo")  # the same tasks again
    assert plan().waiting() == f"2 of 4 tasks wait to be ranked: {words}"
    vote(1, *[[1, 2, 3]] * TASKS)
    assert plan().waiting() is None


def test_what_is_skipped_is_not_enough():
    words = "gpt label runs/comparisons.db --round 1"
    vote(1, [1, 2, 3], *[None] * (TASKS - 1))
    assert plan(enough=2).waiting() == f"0 of 4 tasks wait to be ranked (1 until it is enough): {words}"
    assert plan().waiting() is None
    vote(1, *[None] * TASKS)
    assert plan().waiting() == f"0 of 4 tasks wait to be ranked (none is ranked): {words}"


def test_an_import_beside_takes_no_rounds_number():
    with ComparisonStore.open(Path("runs/comparisons.db")) as store:
        store.round_of("imported")
        number = store.round_of("sampling", "round-3")
    assert number == 4
    assert plan().step.store.exists()


def test_an_older_copy_of_the_store_is_noticed():
    vote(1, [1, 2, 3], [3, 2, 1])
    vote(1, [2, 1, 3])  # one takes the place of another, which stays
    plan().begin()
    plan().finish(1.0)
    vote(2, [1, 2, 3])
    with sqlite3.connect("runs/comparisons.db") as database:
        database.execute("DELETE FROM judgements WHERE vote < 3")
        database.execute("DELETE FROM votes WHERE id < 3")
    database.close()
    with pytest.raises(UserError, match=r"^runs/comparisons.db: found 2 votes, expected the 3 of the round before"):
        plan(2).finish(1.0)


def test_a_round_ends_with_the_votes_of_all_rounds_so_far():
    vote(1, [1, 2, 3], [3, 2, 1])
    vote(2, [2, 1, 3])
    vote(1, [1, 3, 2], labeler="Bo")
    for turn, expected in ((1, [1, 1, 1]), (2, [1, 1, 1, 2])):
        of = plan(turn)
        of.begin()
        of.finish(1.0)
        rows = [json.loads(line) for line in of.step.artefact.read_text().splitlines()]
        assert [row["round"] for row in rows] == expected
        assert {(row["labeler"], row["labeler_kind"]) for row in rows} == {("Ada", "person"), ("Bo", "person")}
        after = read_summary(of.step.folder).after
        assert (after["votes"], after["new_votes"]) == (len(expected), 3 if turn == 1 else 1)
        # Ada and Bo order 2 of the first task's 3 pairs alike; nobody else ranked a task of round 2.
        assert after["agreement"] == (pytest.approx(2 / 3) if turn == 1 else None)
        assert of.done


def test_the_answers_and_the_labeler_decide_the_votes():
    by = {"by": "gpt_modules.evaluation.sentiment:vader"}
    first = plan(**by).origin().made_from
    assert plan(device="cpu", **by).origin().made_from == first
    assert plan(temperature=0.5, **by).origin().made_from != first
    assert plan(by="gpt_modules.evaluation.sentiment:positive").origin().made_from != first
    assert plan(turn=2, **by).origin().made_from != first
    people = plan(flags=["rude"]).origin().made_from
    assert people == plan(overlap=0.5).origin().made_from  # how the page asks decides nothing


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"enough": 0}, "enough: found 0, expected a whole number from 1"),
        ({"enough": 5}, "enough: found 5, expected at most the 4 prompts of a round"),
        ({"enough": 2, "by": "m:f"}, "enough: found 2 beside by, which ranks all, expected it where people rank"),
        ({"name": "x"}, "--name: found x on the page, which does not read it"),
        ({"temperature": 0.5}, "--temperature: found 0.5 on the page, which does not read it"),
        ({"labelers": ["ann", "ann"]}, "--labelers: found 'ann', expected different names"),
        ({"by": "m:f", "overlap": 0.5}, "--overlap: found 0.5 with --by, which does not read it"),
    ],
)
def test_options_without_effect_are_refused(options, line):
    with pytest.raises(UserError, match=f"^{line}"):
        plan(**options).check()


def test_who_ranks_is_there_before_the_first_round():
    for by, line in (
        ("nothing_here:f", r"--by: found .nothing_here:f., expected"),
        ("runs-elsewhere/of/reward", r"by: runs-elsewhere/of/reward/config.json: found no such file, expected an exp"),
    ):
        with pytest.raises(UserError, match=f"^{line}"):
            plan(by=by).check()
    plan(by="runs/round-1/reward/export").check()  # which a step is to make


def test_a_weighted_folder_is_known_by_its_content(micro):
    """And by its weight."""
    first = plan(by=[f"{micro.reward}*2"]).origin().made_from
    assert first["by.1"][0].startswith("SHA-256 ")
    assert plan(by=[f"{micro.reward}*3"]).origin().made_from != first
    with pytest.raises(UserError, match=r"^by: .*: found a model of kind 'gpt', expected 'reward'"):
        plan(by=[str(micro.gpt)]).check()
