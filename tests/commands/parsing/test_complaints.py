"""One line for what the parser says on pages, with a parser of few keys and its own errors."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import pytest
from jsonargparse import ArgumentError, ArgumentParser

from gpt_modules.commands.parsing.complaints import complaint, nearest, one_line, shown
from gpt_modules.commands.parsing.composition import compose
from gpt_modules.commands.parsing.vocabulary import allow_only


@dataclass
class Rate:
    lr: float = 0.1
    shape: Literal["linear", "cosine"] = "linear"


class Part:
    """What stands in lists."""


class Watcher(Part):
    def __init__(self, monitor: str, patience: int = 3) -> None:
        pass


class Learner:
    def __init__(self, steps: int, rate: Rate | None = None, name: str | None = None) -> None:
        pass


@pytest.fixture
def parser():
    allow_only([__name__.partition(".")[0]])
    made = ArgumentParser(exit_on_error=False)
    made.add_argument("--trainer.max_steps", type=int, default=1)
    made.add_argument("--trainer.devices", type=int | str, default="auto")
    made.add_argument("--trainer.callbacks", type=list[Part] | Part | None)
    made.add_argument("--trainer.patience", type=float | None)
    made.add_argument("--model", type=Learner)
    return made


def told(parser, *words):
    recipe = compose(words)
    with pytest.raises((ArgumentError, TypeError, ValueError, KeyError)) as refused:
        parser.parse_object(deepcopy(recipe.values))  # which it writes into
    line = str(complaint(refused.value, recipe, parser))
    assert "\n" not in line
    assert len(line) <= 400
    return line


NAMED = f"--model={__name__}.Learner"
WATCHER = f"--trainer.callbacks+={__name__}.Watcher"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--trainer.max_steps", "many"], "--trainer.max_steps: found 'many', expected a whole number"),
        (["--trainer.max_steps", "null"], "--trainer.max_steps: found 'null', expected a whole number"),
        (["--trainer.patience", "x"], "--trainer.patience: found 'x', expected a number or null"),
        (["--trainer.max_step", "1"],
         "--trainer.max_step: no such key; near it: trainer.max_steps, trainer.callbacks"),
        ([NAMED, "--model.steps", "x"], "--model.steps: found 'x', expected a whole number"),
        ([NAMED, "--model.steps", "1", "--model.rate.lr", "x"], "--model.rate.lr: found 'x', expected a number"),
        ([NAMED, "--model.steps", "1", "--model.rate.shape", "round"],
         "--model.rate.shape: found 'round', expected one of linear, cosine"),
        ([NAMED, "--model.steps", "1", "--model.nmae", "x"], "--model.nmae: no such key; near it: name"),
        ([WATCHER, "--trainer.callbacks.patience", "q", "--trainer.callbacks.monitor", "v"],
         "--trainer.callbacks.0.patience: found 'q', expected a whole number"),
        ([WATCHER, "--trainer.callbacks.patience", "1"],
         "--trainer.callbacks.0.monitor: missing, expected text"),
    ],
)  # fmt: skip
def test_where_key_found_expected(parser, words, line):
    assert told(parser, *words) == line


def test_a_file_is_named_with_its_line(parser, tmp_path):
    (tmp_path / "r.yaml").write_text(f"model:\n  class_path: {__name__}.Learner\n  init_args:\n    steps: [1]\n")
    line = told(parser, "-c", str(tmp_path / "r.yaml"))
    assert line == f"{tmp_path}/r.yaml:4: model.steps: found [1], expected a whole number"


def test_long_values_and_long_lines_are_cut(parser):
    line = told(parser, "--trainer.max_steps", "x" * 5000)
    assert line == f"--trainer.max_steps: found '{'x' * 59}..., expected a whole number"
    line = str(complaint(ValueError("y" * 5000), compose(["--a", "1"]), parser))
    assert line == "y" * 380 + " ..."


def test_no_recipe_at_all(parser):
    line = str(complaint(ValueError("anything"), compose([]), parser))
    assert line == "found no recipe, expected --config RECIPE; gpt recipes lists those that are here"


def test_an_interpolation_that_leads_nowhere():
    """As omegaconf says it, on lines of its own."""
    recipe = compose(["--trainer.max_steps", "2", "--data.context", "${trainer.max_stepz}"])
    error = ValueError("Interpolation key 'trainer.max_stepz' not found\n    full_key: fit.data.init_args.context")
    assert str(complaint(error, recipe, None)) == (
        "--data.context: found '${trainer.max_stepz}', expected the name of a key that has a value; "
        "near it: trainer.max_steps"
    )


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("a", "a"),
        ("a:\n  - b\n  - c\n\n", "a: b c"),
        (" -a\tb   c- \r\n --- \n d", "a b c d"),
        ("", ""),
    ],
)
def test_many_lines_are_one(message, line):
    assert one_line(message) == line


def test_a_value_is_quoted_as_python_writes_it_up_to_sixty_characters():
    assert shown("x") == "'x'"
    assert shown("x" * 58) == f"'{'x' * 58}'"
    assert shown("x" * 59) == f"'{'x' * 59}..."
    assert shown("two\nlines") == "'two\\nlines'"


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("trainer.max_step", "; near it: trainer.max_steps"),
        ("lr", "; near it: optimizer.lr, value.lr"),
        ("zzz", ""),
    ],
)
def test_near_names_or_those_that_end_so(name, near):
    assert nearest(name, ["trainer.max_steps", "value.lr", "optimizer.lr", "optimizer.lr", "seed"]) == near
