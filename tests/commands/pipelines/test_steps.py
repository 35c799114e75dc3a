"""What the stages of a round are fed with, round by round."""

import json
from pathlib import Path

import pytest
import yaml

from gpt_modules.commands.pipelines.reading import read_pipeline
from gpt_modules.commands.pipelines.steps import check_start, steps_of
from gpt_modules.errors import UserError

COMPARE = {"name": "compare", "command": "compare", "feeds": {"model": "ppo@last"}}
LABEL = {"name": "label", "command": "label"}
REWARD = {"name": "reward", "config": "one.yaml", "feeds": {"data.train": "label"}}
PPO = {"name": "ppo", "config": "one.yaml", "feeds": {"init": "ppo@last", "reference": "sft", "rewards": "reward"}}
START = {"sft": "made/sft", "ppo": "made/sft"}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("one.yaml").write_text("trainer: {max_steps: 1}\n")


def read(*stages, rounds=3, start=None, **more):
    """A pipeline whose rounds begin with what its stages ask for, unless told otherwise."""
    if start is None:
        fed = json.dumps([stage.get("feeds", {}) for stage in stages])
        start = {name: folder for name, folder in START.items() if f'"{name}' in fed}
    content = {"root": "runs", "rounds": rounds, "round": [*stages], "start": start, **more}
    Path("p.yaml").write_text(yaml.safe_dump(content))
    return read_pipeline(Path("p.yaml"))


def sources(pipeline, name):
    """Of each round: key -> what it is set to."""
    return [
        {key: [str(path) for path in paths] for key, paths in step.sources.items()}
        for step in steps_of(pipeline)
        if step.stage.name == name
    ]


def test_the_newest_policy_the_votes_of_the_round_and_the_first_model():
    pipeline = read(COMPARE, LABEL, REWARD, PPO)
    assert [step.name for step in steps_of(pipeline)][:5] == [
        *("round-1/compare", "round-1/label", "round-1/reward", "round-1/ppo", "round-2/compare")
    ]
    newest = ["made/sft", "runs/round-1/ppo/export", "runs/round-2/ppo/export"]
    assert sources(pipeline, "compare") == [{"model": [of]} for of in newest]
    assert sources(pipeline, "reward") == [{"data.train": [f"runs/round-{n}/label/votes.jsonl"]} for n in (1, 2, 3)]
    assert sources(pipeline, "ppo") == [
        {"init": [of], "reference": ["made/sft"], "rewards": [f"runs/round-{n}/reward/export"]}
        for n, of in enumerate(newest, start=1)
    ]


def test_what_ppo_exports_beside_its_policy_is_named_after_it():
    """Of an earlier stage, of a round, and of the folder that the rounds begin with."""
    feeds = {"init": "ppo/ema@last", "critic": "ppo/critic@last", "rewards": "reward"}
    pipeline = read(REWARD | {"feeds": {}}, PPO | {"feeds": feeds}, start={"ppo": "made/export"}, rounds=2)
    assert sources(pipeline, "ppo") == [
        {"init": [f"{of}-ema"], "critic": [f"{of}-critic"], "rewards": [f"runs/round-{n}/reward/export"]}
        for n, of in ((1, "made/export"), (2, "runs/round-1/ppo/export"))
    ]


def test_the_policy_of_a_given_round_is_that_of_the_round_before_until_then():
    """And one that is meant twice answers once."""
    compare = {**COMPARE, "feeds": {"model": ["ppo@last", "ppo@1", "ppo@0"]}}
    assert sources(read(compare, PPO | {"feeds": {}}, rounds=4), "compare") == [
        {"model": ["made/sft"]},
        {"model": ["runs/round-1/ppo/export", "made/sft"]},
        {"model": ["runs/round-2/ppo/export", "runs/round-1/ppo/export", "made/sft"]},
        {"model": ["runs/round-3/ppo/export", "runs/round-1/ppo/export", "made/sft"]},
    ]


def test_rounds_may_begin_from_a_stage_of_the_pipeline():
    first = {"name": "sft", "config": "one.yaml"}
    pipeline = read(COMPARE, PPO | {"feeds": {"init": "ppo@last"}}, start={"ppo": "sft"}, stages=[first])
    assert [step.name for step in steps_of(pipeline)][:2] == ["sft", "round-1/compare"]
    assert [of["model"] for of in sources(pipeline, "compare")][:2] == [
        ["runs/sft/export"],
        ["runs/round-1/ppo/export"],
    ]
    check_start(pipeline)  # nothing to look for: it will be made


def test_a_label_is_measured_by_an_earlier_reward_model_where_there_is_one():
    label = LABEL | {"feeds": {"reward": "reward@last"}}
    assert sources(read(COMPARE, label, REWARD, PPO, rounds=2), "label") == [
        {"reward": []},
        {"reward": ["runs/round-1/reward/export"]},
    ]


def fed(stage, of):
    return {**stage, "feeds": {"x": of}}


FAULTS = [
    ([fed(PPO, "ppo")], {"start": START}, r"round\[1\]\.feeds\.x: found 'ppo', .*: sft, or ppo@last"),
    ([fed(PPO, "sfd")], {"start": START}, r"round\[1\]\.feeds\.x: found 'sfd', expected an earlier stage: sft$"),
    ([fed(PPO, "reward@last")], {}, r"round\[1\]\.feeds\.x: found 'reward@last', expected a stage of round"),
    ([fed(PPO, "ppo@last")], {"start": {}}, r"round\[1\]\.feeds\.x: found 'ppo@last' before the first round, .*start"),
    ([fed(PPO, ["ppo@last"])], {"start": {}}, r"round\[1\]\.feeds\.x: found \['ppo@last'\] before the first round"),
    ([fed(PPO, "ppo@-1")], {}, r"round\[1\]\.feeds\.x: found 'ppo@-1', expected"),
    ([fed(PPO, "ppo@first")], {}, r"round\[1\]\.feeds\.x: found 'ppo@first', expected"),
    ([fed(PPO, "ppo@3")], {}, r"round\[1\]\.feeds\.x: found 'ppo@3', expected a round before the last one, 3"),
    ([PPO | {"set": {"init": "x"}}], {}, r"round\[1\]\.set\.init: found it in feeds, too, expected it once"),
    ([fed(PPO, [])], {}, r"round\[1\]\.feeds\.x: found \[\], expected"),
    ([{**PPO, "command": "label"}], {}, r"round\[1\]\.config: found both of config and command"),
    ([{"name": "x", "command": "fit"}], {}, r"round\[1\]\.command: found 'fit', expected"),
    ([{"name": "a@1", "config": "one.yaml"}], {}, r"round\[1\]\.name: found 'a@1', which names something else"),
    ([{"name": "comparisons.db", "config": "one.yaml"}], {}, r"round\[1\]\.name: found 'comparisons.db', which names"),
    ([COMPARE, COMPARE | {"name": "b"}, PPO], {}, r"round: found several stages that compare, expected one"),
    ([LABEL, COMPARE, PPO], {}, r"round\[1\]\.command: found label before compare, expected it after"),
    ([PPO, PPO], {}, r"round\[2\]\.name: found 'ppo', expected a name that no earlier stage has"),
    ([COMPARE | {"set": {"name": "x"}}, PPO], {}, r"round\[1\]\.set\.name: found this key, expected one of"),
    ([COMPARE, LABEL | {"set": {"help": ""}}], {}, r"round\[2\]\.set\.help: found this key, expected one of"),
    ([COMPARE | {"set": {"output": "x"}}, PPO], {}, r"round\[1\]\.set\.output: found this key, expected one of"),
    ([PPO], {"rounds": 0}, r"rounds: found 0 of 1 stages in round, expected both or none"),
    ([], {}, r"stages: found \[\], expected at least one stage"),
    ([PPO], {"rounds": 1001}, r"rounds: found 1001, expected 0 to 1000"),
    ([PPO], {"rounds": "2"}, r"rounds: found '2', expected"),
    ([PPO], {"stages": [fed(PPO, "ppo@last") | {"name": "a"}]}, r"stages\[1\]\.feeds\.x: found 'ppo@last', expected"),
    ([PPO], {"stages": [COMPARE]}, r"stages\[1\]\.command: found compare, which belongs in round"),
    ([COMPARE, PPO | {"feeds": {}}], {"start": {"ppo": "x", "pppo": "x"}}, r"start\.pppo: found it, expected names th"),
    ([PPO], {"rounds": 0, "round": [], "start": START, "stages": [REWARD | {"feeds": {}}]}, r"start: found it without"),
]  # fmt: skip


@pytest.mark.parametrize(("stages", "more", "line"), FAULTS)
def test_mistakes_are_one_line(stages, more, line):
    with pytest.raises(UserError, match=rf"^p\.yaml: {line}") as error:
        read(*stages, **more)
    assert "\n" not in str(error.value)


def test_a_beginning_that_is_not_there_is_told(micro):
    line = r"^start\.ppo: runs/demo/sft/config.json: found no such file, expected an exported model's folder$"
    with pytest.raises(UserError, match=line):
        check_start(read(COMPARE, PPO | {"feeds": {}}, start={"ppo": "runs/demo/sft"}))
    check_start(read(COMPARE, PPO | {"feeds": {}}, start={"ppo": str(micro.gpt)}))
    check_start(read(COMPARE, PPO | {"feeds": {}}, start={"ppo": "gpt2"}))  # may be on the hub
    Path("gpt2").mkdir()
    with pytest.raises(UserError, match=r"^start\.ppo: gpt2/config.json: found no such file"):
        check_start(read(COMPARE, PPO | {"feeds": {}}, start={"ppo": "gpt2"}))
