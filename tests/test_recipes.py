"""Every recipe says what it is, and the command line understands it."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from gpt_modules.backbone import GPT, DecoderConfig
from gpt_modules.commands import fit as trainer_cli
from gpt_modules.commands.pipelines.reading import read_pipeline
from gpt_modules.storage.recipes import read_recipe

FOLDER = Path(__file__).parents[1] / "recipes"
OTHERS = ("hardware", "pipelines", "evaluation")
RECIPES = sorted(path for path in FOLDER.glob("*/*.yaml") if path.parent.name not in OTHERS)
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
    data = {"maml": "episodic", "dpo": "reward"}.get(path.parent.name, path.parent.name)
    assert type(cli.datamodule).__name__.removesuffix("DataModule").lower() == data
    assert cli.trainer.default_root_dir == str(tmp_path)


# Radford et al. 2019, table 2, with the counts of the released models; Brown et al. 2020, table 2.1, whose XL and 13B
# rows cannot be built as printed (24 heads of 128 are not 2,048 wide, 40 of 128 not 5,140).
@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        ("gpt2-124m", 124_439_808),
        ("gpt2-355m", 354_823_168),
        ("gpt2-774m", 774_030_080),
        ("gpt2-1558m", 1_557_611_200),
        ("gpt3-125m", 125_226_240),
        ("gpt3-350m", 355_871_744),
        ("gpt3-760m", 760_300_032),
        ("gpt3-1.3b", 1_315_723_264),
        ("gpt3-2.7b", 2_651_553_280),
        ("gpt3-6.7b", 6_658_404_352),
        ("gpt3-13b", 12_853_386_240),
        ("gpt3-175b", 174_604_259_328),
    ],
)
def test_every_size_of_the_papers_has_its_recipe(size, parameters):
    recipe = read_recipe(FOLDER / "pretraining" / f"{size}.yaml")
    with torch.device("meta"):
        model = GPT(DecoderConfig.from_dict(recipe["model"]["init_args"]["config"]))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert f"{parameters:,} parameters" in header(FOLDER / "pretraining" / f"{size}.yaml")


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
    pipeline = read_pipeline(path)
    stages = [*pipeline.stages, *pipeline.round]
    for stage in stages:
        word = stage.command or Path(stage.recipes[0]).parent.name
        assert stage.name.startswith(word)
    assert [bool(stage.feeds) for stage in stages] == [bool(pipeline.rounds)] + [True] * (len(stages) - 1)


def test_every_word_has_a_tiny_recipe():
    for word in ("pretraining", "finetuning", "sft", "reward", "ppo", "maml", "dpo"):
        assert FOLDER / word / "tiny.yaml" in RECIPES
