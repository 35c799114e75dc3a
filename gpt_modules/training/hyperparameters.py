"""Hyper-parameters as plain data.

A checkpoint that holds a dataclass or a path is refused by `torch.load(weights_only=True)`, hours later, when the run
is resumed. So what a module stores is dicts, lists, strings and numbers only, and what it is given may be either form.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from gpt_modules.errors import expect

T = TypeVar("T")

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
    """A constructor's own arguments as plain data, from `locals()` on its first line."""
    return {name: plain(value) for name, value in local_names.items() if name not in ("self", "__class__")}


def typed(kind: type[T], value: T | Mapping[str, Any]) -> T:
    """The dataclass `kind` from itself or from the dict that `plain` made of it."""
    if isinstance(value, kind):
        return value
    assert isinstance(value, Mapping), f"expected {kind.__name__} or a mapping, found {type(value).__name__}"
    return kind(**value)


def expect_number(field: str, value: Any, interval: str, whole: bool = False) -> None:
    """Refuse what is no number in `interval`, which is written as in mathematics: `[0, 1)` has 0 and not 1. NaN lies in
    none.

    Raises:
        UserError: it does not fit, or is no whole number where `whole`.
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    fits = number and (value > low or (value == low and interval[0] == "["))
    fits = fits and (value < high or (value == high and interval[-1] == "]"))
    expect(fits, field, value, f"a {'whole ' if whole else ''}number in {interval}")
