"""A pipeline's file with the recipes that it names."""

from pathlib import Path

import pytest

from gpt_modules.commands.pipelines.reading import read_pipeline
from gpt_modules.commands.pipelines.steps import steps_of
from gpt_modules.errors import UserError

PIPELINES = sorted((Path(__file__).parents[3] / "recipes/pipelines").glob("*.yaml"))
GOOD = {"name": "a", "config": "one.yaml"}


def test_a_recipe_that_is_none_is_told_with_its_stage(pipeline):
    Path("two.yaml").write_text("a: 1\na: 2\n")
    with pytest.raises(UserError, match=r"^pipeline.yaml: stages\[2\]\.config: two.yaml:2: .*twice"):
        read_pipeline(pipeline({"root": "r", "stages": [GOOD, {"name": "b", "config": ["one.yaml", "two.yaml"]}]}))


def test_recipes_stand_beside_the_pipeline_or_are_named(tmp_path, monkeypatch, pipeline):
    path = pipeline({"root": "r", "stages": [GOOD, {"name": "b", "config": "sft/tiny"}]}).resolve()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    beside, named = read_pipeline(path).stages
    assert beside.recipes == [str(tmp_path / "one.yaml")]
    assert Path(named.recipes[0]).name == "tiny.yaml"


def test_the_root_of_the_command_line_wins(monkeypatch, pipeline):
    monkeypatch.setenv("HOME", "/somewhere")
    path = pipeline({"root": "runs", "stages": [GOOD], "prompts": ["x"], "sample_tokens": 3})
    found = read_pipeline(path, "elsewhere")
    assert steps_of(found)[0].folder == Path("elsewhere/a")
    assert (found.prompts, found.sample_tokens) == (["x"], 3)
    assert read_pipeline(path, "~/runs").root == Path("/somewhere/runs")
    with pytest.raises(UserError, match="root: found '', expected a folder"):
        read_pipeline(path, "")


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_the_shipped_pipelines_are_read(path):
    assert len(steps_of(read_pipeline(path))) >= 2
