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
from gpt_modules.commands.parsing.vocabulary import named_classes
from gpt_modules.errors import UserError
from gpt_modules.storage.yaml_files import Place

_KEY = re.compile(r"(?:(?:trainer\.callbacks: )?(?P<owner>[A-Z]\w*): )?(?P<key>[a-z_]\w*(?:\.\w+)*)(?=: )")


def located(error: UserError, recipe: Composition) -> UserError:
    """The error with its key as the command line takes it, and where the recipe says it before it, or of a `${key}`
    that key; as it is, where it begins with no key of the recipe, or several have that name.
    """
    found = _KEY.match(str(error))
    if found is None:
        return error
    steps: Place = tuple(int(step) if step.isdecimal() else step for step in found["key"].split("."))
    places, rest = _places(error, found["owner"], steps, recipe), str(error)[found.end() :]
    said = [place for place in places if _is_said(place, recipe)] or places
    said = list(dict.fromkeys(map(recipe.said_at, said)))
    named = [place for place in said if rest.startswith(f": found {recipe.at(place)!r}")]
    fitting = named[:1] or said
    return UserError(f"{recipe.where(fitting[0])}{rest}") if len(fitting) == 1 else error


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
            yield (name, "init_args"), imported(section["class_path"]), section.get("init_args") or {}


def imported(path: str) -> Any:
    """The class of a `class_path`."""
    from importlib import import_module

    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def _takes_null(kind: Any, default: Any) -> bool:
    return default is None or kind is Any or kind is NoneType or NoneType in get_args(kind)


def _places(error: UserError, owner: str | None, steps: Place, recipe: Composition) -> list[Place]:
    """Where a key may stand: by its section, or else in the class that was at work, the innermost that has it."""
    if steps[0] in recipe.values:
        section = steps[0] in ("model", "data") and len(steps) > 1 and steps[1] != "class_path"
        return [(steps[0], "init_args", *steps[1:]) if section else steps]
    built = [(kind, (*place, *steps)) for kind, place in _built(recipe.values, ()) if _has(kind, steps[0])]
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    at_work = [owner] if owner else [type(frame.f_locals.get("self")).__name__ for frame in reversed(frames)]
    for name in at_work:
        if inside := [place for kind, place in built if kind == name]:
            return inside
    return [] if owner else [place for _, place in built]  # a group of settings is built before what it is of


def _built(value: Any, place: Place) -> Iterator[tuple[str, Place]]:
    """The classes that are named, and the places of their arguments."""
    if isinstance(value, dict) and isinstance(value.get("class_path"), str):
        yield value["class_path"].rpartition(".")[2], (*place, "init_args")
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in pairs:
        yield from _built(item, (*place, key))


def _has(kind: str, key: str | int) -> bool:
    known = named_classes().get(kind)
    return known is not None and key in inspect.signature(known).parameters


def _is_said(place: Place, recipe: Composition) -> bool:
    outer = recipe.at(place[:-1])
    return place in recipe.sources or (isinstance(outer, dict) and place[-1] in outer) or recipe.at(place) is not None
