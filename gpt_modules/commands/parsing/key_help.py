"""The keys of a procedure, or of any class that a recipe may name: type, value, and what it is for."""

import argparse
import dataclasses
import re
import textwrap
import types
from typing import Any, Union, get_args, get_origin

import lightning.pytorch as L
from jsonargparse import ArgumentParser

from gpt_modules.commands.parsing.complaints import nearest
from gpt_modules.commands.parsing.composition import Composition
from gpt_modules.commands.parsing.keys import class_keys, in_words, parser_keys, type_of
from gpt_modules.commands.parsing.vocabulary import PROCEDURES, named_classes
from gpt_modules.errors import UserError
from gpt_modules.storage.yaml_files import Place

WIDTH = 118
_RUN = ("checkpoint", "export", "samples", "throughput", "progress", "seed_everything", "ckpt_path")


def key_help(topic: str | None, recipe: Composition, parser: ArgumentParser) -> str:
    """The page for a procedure, `trainer`, a class, or, without a topic, the recipe's procedure.

    Raises:
        UserError: for a topic that is none of these.
    """
    if topic == "trainer":
        return "\n".join(_page("trainer", L.Trainer, ("trainer",), recipe))
    if topic is None or topic in PROCEDURES:
        model, data = PROCEDURES[topic] if topic else (_named(recipe, "model"), _named(recipe, "data"))
        lines = [*_page("model", model, ("model", "init_args"), recipe), ""]
        lines += [*_page("data", data, ("data", "init_args"), recipe), "", "run"]
        keys = {key: action for key, action in parser_keys(parser).items() if key.partition(".")[0] in _RUN}
        return "\n".join([*lines, *_keys("", keys, (), recipe)])
    return "\n".join(_page("", _class(topic), (), recipe))


def _named(recipe: Composition, section: str) -> type:
    said = recipe.at((section,))  # `--data SFTDataModule` alone is the name itself
    name = said if isinstance(said, str) else recipe.at((section, "class_path"))
    if not isinstance(name, str):
        raise UserError(f"{section}.class_path: missing, expected a class; or --help with {', '.join(PROCEDURES)}")
    return _class(name)


def _class(name: str) -> type:
    """A class by its name."""
    known, short = named_classes(), name.rpartition(".")[2]
    if short not in known:
        near = nearest(short, [*known, *PROCEDURES])
        raise UserError(
            f"--help: found {name!r}, expected one of {', '.join(PROCEDURES)}, trainer, all, or a class{near}"
        )
    return known[short]


def _page(section: str, kind: type, place: Place, recipe: Composition) -> list[str]:
    title = f"{section} ({kind.__name__})" if section else kind.__name__
    about = (kind.__doc__ or "").strip().partition("\n\n")[0]
    lines = textwrap.wrap(f"{title}: {' '.join(about.split())}", WIDTH) if section != "trainer" else [title]
    return [*lines, *_keys(f"{section}." if section else "", class_keys(kind), place, recipe)]


def _keys(prefix: str, keys: dict[str, argparse.Action], place: Place, recipe: Composition) -> list[str]:
    lines: list[str] = []
    for key, action in keys.items():
        inner = [kind for kind in _alternatives(type_of(action)) if dataclasses.is_dataclass(kind)]
        spot = (*place, *key.split("."))
        said = recipe.at(spot)
        text = f"{in_words(type_of(action))}; {_value(action, said, spot, recipe)}. {_about(action)}".strip()
        lines += [f"  --{prefix}{key}", *textwrap.wrap(text, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)]
        for kind in inner:
            if isinstance(kind, type):
                lines += _keys(f"{prefix}{key}.", class_keys(kind), spot, recipe)
    return lines


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _value(action: argparse.Action, said: Any, spot: Place, recipe: Composition) -> str:
    if said is not None:
        return f"{said} in {recipe.where(spot).partition(': ')[0]}"
    return "required" if action.required else f"default {action.default}"


def _about(action: argparse.Action) -> str:
    """The first sentence of an argument's description."""
    text = " ".join((action.help if isinstance(action.help, str) else "").split())
    return re.split(r"(?<=[a-z)\]`]\.)\s+(?=[A-Z`])", text)[0]
