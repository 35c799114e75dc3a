"""The keys of the parser and of classes: their types in words, for complaints and for help."""

import argparse
import dataclasses
import inspect
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from jsonargparse import ArgumentParser

_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    dict: "a mapping",
    tuple: "a list",
    type(None): "null",
    Any: "a value",
}


def class_keys(kind: type) -> dict[str, argparse.Action]:
    """A constructor's arguments by name, those of its dataclasses as `config.n_layer`."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, fail_untyped=False, sub_configs=False)
    return parser_keys(parser)


def parser_keys(parser: ArgumentParser) -> dict[str, argparse.Action]:
    """A parser's keys that hold a value."""
    kinds = ("_HelpAction", "ActionConfigFile", "_ActionConfigLoad", "_ActionPrintConfig", "_ActionHelpClassPath")
    return {action.dest: action for action in parser._actions if type(action).__name__ not in kinds}


def type_of(action: argparse.Action) -> Any:
    """The type that a key's value must have."""
    return getattr(action, "_typehint", None) or action.type or str


def in_words(kind: Any) -> str:
    """A type as a person would say it."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind in _WORDS:
        return _WORDS[kind]
    if str(kind) == "Untyped":  # the parser's word for an argument without a type
        return _WORDS[Any]
    if origin is Annotated:
        return in_words(inner[0])
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin in (Union, types.UnionType):
        return _either(inner)
    if inspect.isclass(origin) and issubclass(origin, tuple) and Ellipsis not in inner:
        return f"a list of {len(inner)} (each {in_words(inner[0])})" if len(set(inner)) == 1 else "a list"
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return f"a mapping (each value {in_words(inner[1])})"
    if inspect.isclass(origin) and issubclass(origin, (Sequence, Iterable)) and not issubclass(origin, Callable):  # type: ignore[arg-type]
        return f"a list (each {in_words(inner[0])})"
    if dataclasses.is_dataclass(kind):
        return f"the keys {', '.join(field.name for field in dataclasses.fields(kind))}"
    return f"a {kind.__name__}" if inspect.isclass(kind) else str(kind).replace("typing.", "")


def _either(kinds: tuple[Any, ...]) -> str:
    """Alternatives; the choices of several Literals are one list."""
    choices = [str(choice) for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    words = [f"one of {', '.join(dict.fromkeys(choices))}"] if choices else []
    words += [in_words(kind) for kind in kinds if get_origin(kind) is not Literal]
    return " or ".join(dict.fromkeys(words))
