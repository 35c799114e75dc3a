"""Hyper-parameters as plain data.

A checkpoint that holds a dataclass or a path is refused by `torch.load(weights_only=True)`, hours later, when the run
is resumed. So what a module stores is dicts, lists, strings and numbers only, and what it is given may be either form.
"""

import dataclasses
import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any, Protocol, TypeVar, get_args, get_type_hints, runtime_checkable

import torch

from gpt_modules.errors import UserError, expect
from gpt_modules.storage.documents import settings_of

T = TypeVar("T")

FLOAT32 = float(torch.finfo(torch.float32).max)
SEEDS = "[0, 4294967295]"


def plain(value: Any) -> Any:
    """Dataclasses to dicts, tuples to lists, all the way down.

    Raises:
        TypeError: when something is not plain data; better at construction than at the first resume.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"hyper-parameters must be plain data, found {type(value).__name__}: {value!r}")


def arguments(local_names: Mapping[str, Any]) -> dict[str, Any]:
    """A constructor's own arguments as plain data, from `locals()` on its first line. A group of settings that was
    given as a mapping has all its names, as if it had been the dataclass.

    Raises:
        UserError: one is something else.
    """
    groups = _groups(local_names.get("__class__", object))
    given = {}
    for name, value in local_names.items():
        if name not in ("self", "__class__"):
            group = groups.get(name) if isinstance(value, Mapping) else None
            given[name] = _plain(name, value if group is None else settings_of(group, value, name))
    return given


@cache
def _groups(owner: type) -> dict[str, Any]:
    """The dataclass of each argument that is a group of settings."""
    hints = get_type_hints(owner.__init__)  # type: ignore[misc]
    options = {name: [hint, *get_args(hint)] for name, hint in hints.items()}
    found = {name: [kind for kind in kinds if dataclasses.is_dataclass(kind)] for name, kinds in options.items()}
    return {name: kinds[0] for name, kinds in found.items() if kinds}


def _plain(name: str, value: Any) -> Any:
    try:
        return plain(value)
    except TypeError as error:
        of = "a function by its name, 'package.module:name'" if callable(value) else "a checkpoint keeps nothing else"
        raise UserError(f"{name}: found {value!r:.80}, expected numbers, texts, lists and mappings; {of}") from error


def typed(kind: type[T], value: T | Mapping[str, Any]) -> T:
    """The dataclass `kind` from itself or from the dict that `plain` made of it.

    Raises:
        UserError: it is neither, or has other names or values.
    """
    return settings_of(kind, value, kind.__name__)


@runtime_checkable
class Settings(Protocol):
    """A group of settings that knows which of its own do nothing beside the others."""

    def idle(self) -> dict[str, str]:
        """Names of these settings, and why nothing follows them."""


def refuse_idle(module: object, **groups: Settings) -> None:
    """Refuse settings that would change nothing, for whoever wrote them expects that they do.

    Args:
        module: whose constructor has arguments of these names; the defaults that stand there, and those of the groups
            themselves, are nobody's wish.

    Raises:
        UserError: one has another value.
    """
    parameters = inspect.signature(type(module).__init__).parameters
    for name, group in groups.items():
        default = parameters[name].default if name in parameters else None
        defaults = [type(group)(), *([default] if isinstance(default, type(group)) else [])]
        for field, reason in group.idle().items():
            expect_idle(f"{name}.{field}", getattr(group, field), [getattr(one, field) for one in defaults], reason)


def expect_idle(field: str, value: Any, defaults: list[Any], reason: str) -> None:
    """Refuse a value that nothing would follow, unless it is a default.

    Raises:
        UserError: it is not.
    """
    shown = plain(defaults[-1])
    expect(plain(value) in map(plain, defaults), field, plain(value), f"it left at {shown!r}: {reason}")


def expect_number(field: str, value: Any, interval: str, whole: bool = False) -> None:
    """Refuse what is no number in `interval`, which is written as in mathematics: `[0, 1)` has 0 and not 1. NaN lies in
    none, and in no direction is there more than float32 holds, as which it is multiplied.

    Raises:
        UserError: it does not fit, or is no whole number where `whole`.
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    fits = number and (value > low or (value == low and interval[0] == "["))
    fits = fits and (value < high or (value == high and interval[-1] == "]"))
    expect(fits, field, value, f"a {'whole ' if whole else ''}number in {interval}")
    expect(whole or abs(value) <= FLOAT32, field, value, f"a number up to {FLOAT32:.3g}, which float32 holds")
