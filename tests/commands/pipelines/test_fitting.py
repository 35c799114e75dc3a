"""A recipe of a pipeline as words of `gpt fit`."""

import json
from pathlib import Path

import pytest

from gpt_modules.commands.pipelines.document import Pipeline, Stage
from gpt_modules.commands.pipelines.fitting import FitPlan, fit_words
from gpt_modules.commands.pipelines.steps import steps_of
from gpt_modules.commands.run import make_plans
from gpt_modules.errors import UserError


def test_values_of_any_kind_are_set_as_json():
    stage = Stage("a", "r.yaml", None, {"m.i": "b"}, {"x": [1, 2], "y": True, "z": "text", "n": None})
    step = steps_of(Pipeline(Path("runs"), [Stage("b", "r.yaml"), stage]))[1]
    assert fit_words(step, ["over.yaml"], ["p"]) == [
        "--config", "r.yaml", "--config", "over.yaml", "--allow=p", "--trainer.default_root_dir=runs/a",
        "--m.i=runs/b/export",
        "--x=[1, 2]", "--y=true", "--z=text", "--n=null",
    ]  # fmt: skip


def test_one_source_is_a_path_and_a_list_of_them_is_a_list():
    """As a reward is one folder, and an ensemble several, however many they are in a round."""
    stages = [Stage(name, "r.yaml") for name in ("a", "b")]
    stages.append(Stage("c", "r.yaml", None, {"w": "a", "x": ["a"], "y": ["b", "a"]}))
    words = fit_words(steps_of(Pipeline(Path("runs"), stages))[2])
    assert words[-3:] == ["--w=runs/a/export", '--x=["runs/a/export"]', '--y=["runs/b/export", "runs/a/export"]']


def test_a_policy_is_no_reward_before_the_first_step(micro, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for key, folder in (("rewards", micro.gpt), ("reference_from", micro.reward)):
        recipe = micro.recipe("ppo", tmp_path / "unused", **{f"model__{key}": str(folder)})
        Path("ppo.yaml").write_text(json.dumps(recipe))
        pipeline = Pipeline(Path("runs"), [Stage("ppo", "ppo.yaml")])
        with pytest.raises(UserError, match=rf"^model.{key}: {folder}: found a model of kind"):
            FitPlan(steps_of(pipeline)[0], pipeline).check()


@pytest.mark.parametrize(
    ("word", "changes"),
    [
        ("sft", {"data__pretraining": {"train": "absent.jsonl"}, "data__pretraining_fraction": 0.1}),
        ("ppo", {"data__pretraining": {"validation": "absent.jsonl"}}),
        ("ppo", {"data__pretraining": {"mixture": [{"source": ["absent.jsonl"], "weight": 1.0}]}}),
        ("pretraining", {"data__train": None, "data__mixture": [{"source": "absent.jsonl", "weight": 1.0}]}),
        ("reward", {"data__demonstrations": "absent.jsonl"}),
    ],
    ids=str,
)
def test_every_file_is_looked_for_before_the_first_step(micro, tmp_path, monkeypatch, word, changes):
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(json.dumps(micro.recipe(word, tmp_path / "unused", **changes)))
    pipeline = Pipeline(Path("runs"), [Stage(word, "r.yaml")])
    with pytest.raises(UserError, match=r"^absent\.jsonl: "):
        FitPlan(steps_of(pipeline)[0], pipeline).check()
    Path("absent.jsonl").write_text('{"text": "there"}\n')
    FitPlan(steps_of(pipeline)[0], pipeline).check()


@pytest.mark.parametrize(
    ("changes", "made"),
    [
        ({}, ["export-critic"]),
        ({"model__estimator": {"name": "rloo"}}, []),
        ({"model__ema": {"export": "beside"}}, ["export-critic", "export-ema"]),
        ({"model__ema": {"decay": 0.9}}, ["export-critic", "export-ema"]),
        ({"model__ema": {"export": "instead"}}, ["export-critic"]),
    ],
    ids=str,
)
def test_a_stage_is_fed_with_what_its_source_makes_beside_an_export(micro, tmp_path, monkeypatch, changes, made):
    """And refused before the first step where the recipe makes none."""
    monkeypatch.chdir(tmp_path)
    Path("ppo.yaml").write_text(json.dumps(micro.recipe("ppo", tmp_path / "unused", **changes)))
    first = Stage("ppo", "ppo.yaml")
    for beside in ("critic", "ema"):
        key = "model.init_args.critic.init_from" if beside == "critic" else "model.init_args.init_from"
        pipeline = Pipeline(Path("runs"), [first, Stage("again", "ppo.yaml", None, {key: f"ppo/{beside}"})])
        if f"export-{beside}" in made:
            earlier, plan = make_plans(pipeline)
            assert earlier.beside == made
            assert f"--{key}=runs/ppo/export-{beside}" in plan.fit_words
            continue
        with pytest.raises(
            UserError, match=rf"^stage again: feeds\.{key}: found export-{beside} of ppo, expected a stage"
        ):
            make_plans(pipeline)
