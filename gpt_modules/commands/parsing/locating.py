"""What a constructor refuses, told by where the recipe says it: a class knows its own arguments, and neither the file
nor the section that it stands in.
"""

import inspect
import re
import traceback
from collections.abc import Iterator, Mapping
from types import NoneType
from typing import Any, get_args, get_type_hints

from gpt_modules.commands.parsing.composition import Composition
from gpt_modules.commands.parsing.keys import in_words
from gpt_modules.errors import UserError
from gpt_modules.storage.yaml_files import Place

_KEY = re.compile(r"([a-z_]\w*(?:\.\w+|\[\d+\])*)(?=: found )")
_STEP = re.compile(r"\w+")


def located(error: UserError, recipe: Composition) -> UserError:
    """The error with the place in the recipe before its key; as it is, where the place cannot be told."""
    found = _KEY.match(str(error))
    if found is None:
        return error
    steps: Place = tuple(int(step) if step.isdecimal() else step for step in _STEP.findall(found[1]))
    said = [place for place in _candidates(error, steps, recipe) if _is_said(place, recipe)]
    rest = str(error)[found.end() :]
    named = [place for place in said if rest.startswith(f": found {recipe.at(place)!r}")]
    places = named or said
    return UserError(f"{recipe.where(places[0])}{rest}") if len(places) == 1 or named else error


def check_nulls(config: Mapping[str, Any], recipe: Composition) -> None:
    """A null is a value of the keys that may be one.

    Args:
        config: a class's arguments under the class, see `constructed`.

    Raises:
        UserError: for the first said of a key that has another type.
    """
    for place, kind, values in constructed(config):
        hints, known = get_type_hints(kind.__init__), inspect.signature(kind).parameters
        for key, value in values.items():
            if value is None and key in hints and not _takes_null(hints[key], known[key].default):
                where = recipe.where((*place, key))
                raise UserError(f"{where}: found null, expected {in_words(hints[key])}")


def constructed(config: Mapping[str, Any]) -> Iterator[tuple[Place, Any, Mapping[str, Any]]]:
    """(place, class, arguments) of the model and the data of a parsed recipe, and of the callbacks that have keys."""
    from gpt_modules.training.callbacks.checkpointing import ExactCheckpoint
    from gpt_modules.training.callbacks.export import ExportBest
    from gpt_modules.training.callbacks.progress import StepBar
    from gpt_modules.training.callbacks.samples import SampleTable
    from gpt_modules.training.callbacks.throughput import Throughput

    callbacks = {"checkpoint": ExactCheckpoint, "export": ExportBest, "samples": SampleTable}
    for name, kind in {**callbacks, "throughput": Throughput, "progress": StepBar}.items():
        yield (name,), kind, config.get(name) or {}
    for name in ("model", "data"):
        section = config.get(name) or {}
        if isinstance(section.get("class_path"), str):
            yield (name, "init_args"), _imported(section["class_path"]), section.get("init_args") or {}


def _imported(path: str) -> Any:
    from importlib import import_module

    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def _takes_null(kind: Any, default: Any) -> bool:
    return default is None or kind is Any or kind is NoneType or NoneType in get_args(kind)


def _candidates(error: UserError, steps: Place, recipe: Composition) -> list[Place]:
    """The key in what was being built, the innermost first, and the key as it stands."""
    owners = [
        type(frame.f_locals["self"])
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_name == "__init__" and "self" in frame.f_locals
    ]
    for owner in reversed(owners):
        inside = [(*place, *steps) for place in _built(recipe.values, owner.__name__, ())]
        if inside:
            return inside
    return [steps, *((name, "init_args", *steps) for name in ("model", "data"))]  # a group of settings is built before


def _built(value: Any, name: str, place: Place) -> Iterator[Place]:
    """Where a class is named, as the place of its arguments."""
    if isinstance(value, dict) and str(value.get("class_path")).rpartition(".")[2] == name:
        yield (*place, "init_args")
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in pairs:
        yield from _built(item, name, (*place, key))


def _is_said(place: Place, recipe: Composition) -> bool:
    outer = recipe.at(place[:-1])
    return place in recipe.sources or (isinstance(outer, dict) and place[-1] in outer) or recipe.at(place) is not None
