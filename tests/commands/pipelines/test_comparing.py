"""A round's answers: options as words, enough prompts for all rounds, and what decides the answers."""

from pathlib import Path

import pytest

from gpt_modules.commands.pipelines.comparing import ComparePlan, option_words
from gpt_modules.commands.pipelines.document import Pipeline, Stage
from gpt_modules.commands.pipelines.steps import steps_of
from gpt_modules.errors import UserError

SET = {"prompts": "prompts.jsonl", "k": 3, "count": 5}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [f'{{"prompt": "film {number % 12}"}}\n' for number in range(20)]  # 12 different ones
    Path("prompts.jsonl").write_text("".join(rows))


def plan(turn=1, rounds=2, **options):
    options = {name: value for name, value in (SET | options).items() if value is not None}
    stages = [Stage("compare", None, "compare", {"model": ["ppo@last", "ppo@0"]}, options), Stage("ppo", "r.yaml")]
    pipeline = Pipeline(Path("runs"), [], rounds, stages, {"ppo": "first"})
    (step,) = [step for step in steps_of(pipeline) if step.name == f"round-{turn}/compare"]
    return ComparePlan(step, pipeline)


def test_the_command_of_a_round():
    assert plan(2, top_k=7).words() == [
        *("compare", "--model", "runs/round-1/ppo/export", "first", "--prompts", "prompts.jsonl", "--k", "3"),
        *("--count", "5", "--top-k", "7", "--output", "runs/comparisons.db", "--name", "round-2"),
    ]


def test_all_rounds_have_prompts_of_their_own():
    plan(rounds=2).check()
    with pytest.raises(
        UserError, match=r"^count: found 5 in each of 3 rounds, expected at most 4: there are 12 prompts"
    ):
        plan(rounds=3).check()
    with pytest.raises(UserError, match=r"^count: found none for 2 rounds, expected how many prompts each takes"):
        plan(count=None).check()
    plan(rounds=1, count=None).check()


def test_what_decides_the_answers_is_compared_and_where_they_are_made_is_not():
    first = plan(device="cpu").origin().made_from
    assert plan(device="auto").origin().made_from == first
    for change in ({"temperature": 0.5}, {"k": 4}, {"count": 4}, {"seed": 1}):
        assert plan(**change).origin().made_from != first
    Path("prompts.jsonl").write_text('{"prompt": "another"}\n')
    assert plan().origin().made_from != first


@pytest.mark.parametrize("value", [True, None, {"a": 1}, [["a"]], [None]])
def test_what_no_word_can_be_is_refused(value):
    with pytest.raises(UserError, match=r"^top_k: found .*, expected a number or text, or a list of them"):
        option_words({"top_k": value})


def test_options_are_those_of_the_command():
    with pytest.raises(UserError, match="gpt compare: unrecognized arguments: --heat 3"):
        plan(heat=3)
    with pytest.raises(UserError, match=r"^--k: found '1', expected a whole number from 2"):
        plan(k=1)
