"""Hyper-parameters are plain data, and every one of them is used."""

import ast
import inspect
import textwrap

import pytest

from gpt_modules.training import PPOModule, PretrainingModule, RewardModule, SFTModule
from gpt_modules.training.hyperparameters import arguments, plain, typed
from gpt_modules.training.optimizers import ScheduleConfig
from gpt_modules.training.ppo import ClipConfig, KLConfig

MODULES = [PretrainingModule, SFTModule, RewardModule, PPOModule]


def names_read(kind):
    """Constructor arguments that the class reads: by name in `__init__`, or from `self.hparams`."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    read = {
        node.slice.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant)
    }
    constructor = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    loads = (node for statement in constructor.body for node in ast.walk(statement))
    return read | {node.id for node in loads if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


@pytest.mark.parametrize("kind", MODULES)
def test_every_argument_is_read(kind):
    given = set(inspect.signature(kind).parameters)
    unread = given - names_read(kind) - {"seed"}
    assert not unread
    assert "seed" not in given or "seed" in names_read(kind) | {"seed"}, "sampling_generator reads it"


@pytest.mark.parametrize("kind", MODULES)
def test_every_argument_is_documented(kind):
    documented = {line.split(":")[0] for line in map(str.strip, kind.__doc__.splitlines()) if ":" in line}
    names = {name.strip() for line in documented for name in line.split(",")}
    assert set(inspect.signature(kind).parameters) <= names


@pytest.mark.parametrize("kind", [ScheduleConfig, KLConfig, ClipConfig])
def test_dataclasses_survive_the_way_through_plain_data(kind):
    value = kind()
    assert isinstance(plain(value), dict)
    assert plain(typed(kind, plain(value))) == plain(value)
    assert typed(kind, value) is value


def test_tuples_become_lists_and_arguments_leave_self_out():
    assert plain({"betas": (0.9, 0.95), "n": None, "deep": [{"x": (True, "y")}]}) == {
        "betas": [0.9, 0.95],
        "n": None,
        "deep": [{"x": [True, "y"]}],
    }
    assert arguments({"self": object(), "__class__": int, "lr": 1.0}) == {"lr": 1.0}


def test_what_is_no_plain_data_is_refused_at_construction():
    with pytest.raises(TypeError, match="plain data, found function"):
        plain({"function": lambda: None})
