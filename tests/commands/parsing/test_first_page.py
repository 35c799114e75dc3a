"""The first page is true: what it shows is composed as it says, and every way out of it is there."""

import re

import pytest

from gpt_modules.commands.parsing.composition import compose
from gpt_modules.commands.parsing.first_page import FIRST_PAGE, asks_first_page
from gpt_modules.commands.parsing.vocabulary import PROCEDURES
from gpt_modules.storage.recipes import recipe_names


@pytest.mark.parametrize("words", [["--help"], ["-h"], ("--help",)])
def test_help_alone_asks_for_it(words):
    assert asks_first_page(words)


@pytest.mark.parametrize("words", [[], ["--help", "sft"], ["-c", "sft/tiny", "--help"], ["--help="], ["--help", "-h"]])
def test_anything_beside_it_does_not(words):
    assert not asks_first_page(words)


def test_it_fits_a_screen_of_lines_that_fit():
    lines = FIRST_PAGE.splitlines()
    assert len(lines) < 50
    assert max(map(len, lines)) <= 120


def test_what_it_names_is_there():
    assert f"{', '.join(PROCEDURES)}\n" in FIRST_PAGE
    named = set(re.findall(r"\w+/tiny", FIRST_PAGE))
    assert named == {"sft/tiny"}
    assert named <= set(recipe_names())
    for word in re.findall(r"--help (\w+)", FIRST_PAGE):
        assert word in (*PROCEDURES, "trainer", "SomeClass", "all")


def example(begins):
    """The words of the page's line that begins so."""
    (line,) = [line.strip() for line in FIRST_PAGE.splitlines() if line.strip().startswith(begins)]
    return re.split(r"\s{2,}", line)[0].replace("'", "").split()


@pytest.mark.parametrize(
    ("begins", "said"),
    [
        ("--model.optimizer.lr", {"model": {"init_args": {"optimizer": {"lr": "1e-4"}}}}),
        ("--model.optimizer.muon_lr", {"model": {"init_args": {"optimizer": {"muon_lr": "null"}}}}),
        ("--data.train", {"data": {"init_args": {"train": ["a.txt", "b.txt"]}}}),
        ("--trainer.callbacks+", {"trainer": {"callbacks": [
            {"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss"}}]}}),
        ("--data.batch_size", {"data": {"init_args": {"batch_size": "${trainer.max_epochs}"}}}),
        ("--ckpt_path", {"ckpt_path": "last"}),
        ("--model.rewards", {"model": {"init_args": {"rewards": "my_package.scores:politeness"}}}),
    ],
)  # fmt: skip
def test_its_examples_are_words_that_compose(begins, said):
    assert compose(example(begins)).values == said


def test_later_files_and_allowed_packages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("trainer: {max_steps: 1, devices: 2}\n")
    (tmp_path / "b.yaml").write_text("trainer: {max_steps: 3}\n")
    assert compose(example("--config a.yaml")).values == {"trainer": {"max_steps": 3, "devices": 2}}
    assert compose(example("--allow")).allowed == ["my_package"]
