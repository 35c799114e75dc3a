"""Every recipe says what it is, and the command line understands it."""

import re
from pathlib import Path

import pytest
import yaml

from gpt_modules import trainer_cli
from gpt_modules.pipeline import read_pipeline
from gpt_modules.recipe_files import read_recipe

FOLDER = Path(__file__).parents[1] / "recipes"
RECIPES = sorted(path for path in FOLDER.glob("*/*.yaml") if path.parent.name not in ("hardware", "pipelines"))
OVERLAYS = sorted(FOLDER.glob("hardware/*.yaml"))
PIPELINES = sorted(FOLDER.glob("pipelines/*.yaml"))
HERE = [
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.num_nodes=1",
    "--trainer.strategy=auto",
    "--trainer.precision=32-true",
]


def name(path):
    return str(path.relative_to(FOLDER.parent))


def header(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_the_header_has_paper_command_and_outcome(path):
    text = header(path)
    assert re.search(r"\b(19|20)\d\d\b", text), "the year of a paper"
    assert f"gpt fit --config {name(path)}" in text
    assert re.search(r"^# (Gave|Not run)", text, re.MULTILINE)
    assert "Needs" in text
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 55


@pytest.mark.parametrize("path", [*OVERLAYS, *PIPELINES], ids=name)
def test_overlays_and_pipelines_say_what_they_are(path):
    assert len(header(path)) > 40
    read_recipe(path)


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_builds_its_module_data_and_trainer(path, tmp_path, monkeypatch):
    built = []
    monkeypatch.setattr(trainer_cli.TrainerCLI, "_run_subcommand", lambda cli, subcommand: built.append(cli))
    monkeypatch.setattr("sys.argv", ["gpt"])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    trainer_cli.run_trainer("fit", ["--config", str(path), f"--trainer.default_root_dir={tmp_path}", *HERE])
    (cli,) = built
    assert type(cli.model).__name__.removesuffix("Module").lower() == path.parent.name
    assert type(cli.datamodule).__name__.removesuffix("DataModule").lower() == path.parent.name
    assert cli.trainer.default_root_dir == str(tmp_path)


@pytest.mark.parametrize("overlay", OVERLAYS, ids=name)
def test_an_overlay_lies_over_any_recipe(gpt, overlay):
    recipe = FOLDER / "ppo" / "tiny.yaml"
    ended = gpt.run("fit", "--config", recipe, "--config", overlay, "--print_config")
    assert ended.status == 0, ended.stderr
    found = yaml.safe_load(ended.stdout)["trainer"]
    for key, value in read_recipe(overlay)["trainer"].items():
        assert str(found[key]) == str(value)


@pytest.mark.parametrize("path", PIPELINES, ids=name)
def test_a_pipeline_names_recipes_and_earlier_stages(path, monkeypatch):
    monkeypatch.chdir(FOLDER.parent)
    stages = read_pipeline(path).stages
    assert [Path(stage.config[0]).parent.name for stage in stages] == [stage.name for stage in stages]
    assert [bool(stage.feeds) for stage in stages] == [False] + [True] * (len(stages) - 1)


def test_every_word_has_a_tiny_recipe():
    for word in ("pretraining", "finetuning", "sft", "reward", "ppo"):
        assert FOLDER / word / "tiny.yaml" in RECIPES
