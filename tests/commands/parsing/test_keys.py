"""Types in the words of a person, and the keys that a class has."""

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union

import pytest
from jsonargparse import ArgumentParser

from gpt_modules.commands.parsing.keys import class_keys, in_words, parser_keys, type_of


@dataclass
class Rate:
    lr: float = 0.1
    decay: float | None = None


class Learner:
    """Takes keys of several kinds."""

    def __init__(self, rate: Rate, name: str, steps: int = 3, *, anything=None) -> None:
        pass


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (int, "a whole number"),
        (bool, "true or false"),
        (Any, "a value"),
        (None.__class__, "null"),
        (int | None, "a whole number or null"),
        (Optional[float], "a number or null"),  # noqa: UP045
        (Union[str, list[str]], "text or a list (each text)"),  # noqa: UP007
        (Literal["pre", "post"], "one of pre, post"),
        (Literal["auto"] | Literal["norm", "auto"] | int | None, "one of auto, norm or a whole number or null"),
        (int | Literal["all"], "one of all or a whole number"),
        (tuple[float, float], "a list of 2 (each a number)"),
        (tuple[float, int], "a list"),
        (tuple[str, ...], "a list (each text)"),
        (Sequence[int | None], "a list (each a whole number or null)"),
        (Iterable[str], "a list (each text)"),
        (Mapping[str, list[int]], "a mapping (each value a list (each a whole number))"),
        (dict[str, float], "a mapping (each value a number)"),
        (Annotated[int, "positive"], "a whole number"),
        (Rate, "the keys lr, decay"),
        (Rate | None, "the keys lr, decay or null"),
        (Colour, "a Colour"),
        (Path, "a Path"),
        (Union[int, Annotated[int, "x"], str], "a whole number or text"),  # noqa: UP007
        (list, "a list"),
        (dict, "a mapping"),
        (tuple, "a list"),
    ],
)  # fmt: skip
def test_a_type_in_words(kind, words):
    assert in_words(kind) == words


def test_what_has_no_words_is_named():
    assert in_words(Callable[[int], str]) == "collections.abc.Callable[[int], str]"
    assert "\n" not in in_words(Callable[..., Any] | None)


def test_the_keys_of_a_class_reach_into_its_dataclasses():
    keys = class_keys(Learner)
    assert list(keys) == ["rate.lr", "rate.decay", "name", "steps", "anything"]
    assert {key: type_of(action) for key, action in keys.items() if key != "anything"} == {
        "rate.lr": float,
        "rate.decay": float | None,
        "name": str,
        "steps": int,
    }
    assert in_words(type_of(keys["anything"])) == "null or a value"
    assert [key for key, action in keys.items() if action.required] == ["name"]
    assert (keys["steps"].default, keys["rate.lr"].default) == (3, 0.1)


def test_a_parsers_keys_hold_values():
    """Not the options that print, explain or read a file."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Learner, "learner", fail_untyped=False)
    parser.add_argument("--plain")
    parser.add_argument("--seed", type=int | bool)
    keys = parser_keys(parser)
    named = ["learner.rate.lr", "learner.rate.decay", "learner.name", "learner.steps", "learner.anything"]
    assert [key for key in keys if key != "learner.rate"] == [*named, "plain", "seed"]
    assert type_of(keys["plain"]) is str
    assert type_of(keys["seed"]) == int | bool
