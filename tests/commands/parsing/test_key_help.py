"""The page of a procedure or a class says what its constructor takes, and what the recipe says."""

import dataclasses
import inspect
import re

import pytest
from jsonargparse import ArgumentParser

from gpt_modules.commands.parsing.composition import compose
from gpt_modules.commands.parsing.key_help import WIDTH, key_help
from gpt_modules.commands.parsing.vocabulary import PROCEDURES
from gpt_modules.errors import UserError
from gpt_modules.training.optimizers import OptimizerConfig

NOTHING = compose([])


@pytest.fixture
def parser():
    made = ArgumentParser(exit_on_error=False)
    made.add_argument("--seed_everything", type=int | bool, default=True, help="One seed. And more about it.")
    made.add_argument("--trainer.max_steps", type=int)
    return made


def entry(page, key):
    """The text below a key."""
    lines = page.splitlines()
    start = lines.index(f"  --{key}") + 1
    end = next((n for n in range(start, len(lines)) if not lines[n].startswith(" " * 6)), len(lines))
    return " ".join(line.strip() for line in lines[start:end])


@pytest.mark.parametrize("word", PROCEDURES)
def test_every_argument_of_a_procedure_is_on_its_page(parser, word):
    page = key_help(word, NOTHING, parser)
    for section, kind in zip(("model", "data"), PROCEDURES[word], strict=True):
        assert f"{section} ({kind.__name__}): " in page
        for name in list(inspect.signature(kind).parameters):
            assert re.search(rf"^  --{section}\.{name}(\.|$)", page, re.MULTILINE), name
    for field in dataclasses.fields(OptimizerConfig):
        assert f"  --model.optimizer.{field.name}\n" in page
    assert max(map(len, page.splitlines())) <= WIDTH


def test_an_entry_is_type_value_and_the_first_sentence(parser):
    page = key_help("sft", NOTHING, parser)
    assert entry(page, "seed_everything") == "a whole number or true or false; default True. One seed."
    assert "  --trainer.max_steps\n" not in page


def test_what_the_recipe_says_stands_with_its_place(parser, tmp_path):
    (tmp_path / "r.yaml").write_text("model:\n  class_path: SFTModule\n  init_args:\n    optimizer: {lr: 0.125}\n")
    recipe = compose(["-c", str(tmp_path / "r.yaml"), "--data", "SFTDataModule", "--seed_everything", "7"])
    page = key_help(None, recipe, parser)
    assert f"; 0.125 in {tmp_path}/r.yaml:4." in entry(page, "model.optimizer.lr")
    assert "; 7 in --seed_everything." in entry(page, "seed_everything")


@pytest.mark.parametrize("name", ["EarlyStopping", "lightning.pytorch.callbacks.EarlyStopping"])
def test_a_class_by_its_name_short_or_long(parser, name):
    page = key_help(name, NOTHING, parser)
    assert page.startswith("EarlyStopping: ")
    assert entry(page, "monitor").startswith("text; required.")
    assert entry(page, "patience").startswith("a whole number; default 3.")


def test_the_trainers_page(parser):
    page = key_help("trainer", NOTHING, parser)
    assert page.splitlines()[0] == "trainer (Trainer)"
    assert entry(page, "trainer.max_steps").startswith("a whole number; default -1.")


@pytest.mark.parametrize(
    ("topic", "near"), [("stf", "; near it: sft"), ("EarlyStoping", "; near it: EarlyStopping"), ("qqqqq", "")]
)
def test_a_topic_that_there_is_not(parser, topic, near):
    with pytest.raises(UserError) as refused:
        key_help(topic, NOTHING, parser)
    words = "pretraining, finetuning, sft, reward, ppo, maml, dpo"
    line = f"--help: found {topic!r}, expected one of {words}, trainer, all, or a class"
    assert str(refused.value).startswith(line + near)


def test_no_topic_and_no_class_in_the_recipe(parser):
    with pytest.raises(UserError) as refused:
        key_help(None, compose(["--trainer.max_steps", "1"]), parser)
    words = "pretraining, finetuning, sft, reward, ppo, maml, dpo"
    assert str(refused.value) == f"model.class_path: missing, expected a class; or --help with {words}"
