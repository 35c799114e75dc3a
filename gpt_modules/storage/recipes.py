"""Recipes by path or by name: those of the current folder, and those that the package ships."""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt_modules.errors import UserError
from gpt_modules.storage.paths import is_there
from gpt_modules.storage.text_files import read_text
from gpt_modules.storage.yaml_files import MAX_BYTES, Lines, Place, dotted, read_yaml

LOCAL = Path("recipes")
_PACKAGE = Path(__file__).parents[1]
SHIPPED = _PACKAGE / "recipes" if (_PACKAGE / "recipes").is_dir() else _PACKAGE.parent / "recipes"
"""Where an installed package has them, and where a checkout does."""

_RESOLVER = re.compile(r"\$\{[^{}]*(\{[^{}]*\}[^{}]*)*:")


def find_recipe(name: str | Path, beside: Path | None = None) -> Path:
    """The file that a path or a name such as `ppo/tiny` or `recipes/ppo/tiny.yaml` means: a file of that path, one
    beside the file that names it, one of the current folder's `recipes/`, one that the package ships, in this order.

    Args:
        name: a path, or `<folder>/<recipe>` with or without `recipes/` before and `.yaml` behind.
        beside: the file in which the name stands, for a pipeline that lies with its recipes.

    Raises:
        UserError: nothing has that name (the nearest names are told), or it is a URL.
    """
    if not str(name).strip():
        raise UserError(f"found {str(name)!r}, expected the path or the name of a recipe; gpt recipes lists them")
    if "://" in str(name):
        raise UserError(f"{name}: a recipe is read from a local file only, expected a path")
    short = Path(name).relative_to(LOCAL) if Path(name).parts[:1] == LOCAL.parts else Path(name)
    folders = [(Path(), Path(name)), *([(beside.parent, Path(name))] if beside else []), (LOCAL, short)]
    if not short.is_absolute() and ".." not in short.parts:
        folders.append((SHIPPED, short))
    for folder, path in folders:
        for found in (folder / path, folder / f"{path}.yaml"):
            if is_there(found) and not found.is_dir():
                return found
    raise UserError(f"{str(name)[:200]}: no such recipe{_near(short)}")


def recipe_text(path: Path) -> str:
    """A recipe as it is written.

    Raises:
        UserError: the file is none of text, or too large for a recipe.
    """
    return read_text(path, "a recipe", MAX_BYTES)


def recipe_names() -> list[str]:
    """`<folder>/<recipe>` of every recipe here and in the package."""
    return sorted({_name(path, root) for root in (LOCAL, SHIPPED) for path in root.glob("*/*.yaml")})


def writer_of(folder: str) -> str:
    """How to come by a folder that recipes write, `runs/sft/tiny/export`, as the end of a line; "" for others."""
    parts = Path(folder).parts
    name = "/".join(parts[1:3])
    made = len(parts) == 4 and parts[0] == "runs" and parts[3].startswith("export") and name in recipe_names()
    return f"; gpt fit --config {name} writes it" if made else ""


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix().removesuffix(".yaml")


def _near(short: Path) -> str:
    known = recipe_names()
    wanted = short.as_posix().removesuffix(".yaml")
    near = difflib.get_close_matches(wanted, known, n=3)
    near = near or [name for name in known if name.partition("/")[2] == short.stem][:3]
    return f"; near it: {', '.join(near)}" if near else "; gpt recipes lists those that are here"


def read_recipe(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: for a file that `read_yaml` refuses, one that holds no mapping, or a resolver; with the line.
    """
    return read_with_lines(path)[0]


def read_with_lines(path: Path) -> tuple[dict[str, Any], Lines]:
    """`read_recipe`, and the line of each key."""
    content, lines = read_yaml(path)
    if not isinstance(content, dict):
        found = "nothing" if content is None else type(content).__name__
        raise UserError(f"{path}: found {found}, expected a mapping of keys")
    for place, text in _texts(content, ()):
        if resolver := resolver_in(text):
            where = f"{path}:{lines.get(place, '?')}: {dotted(place)}"
            raise UserError(f"{where}: found {resolver}, expected ${{key}} only: resolvers are not allowed")
    return content, lines


def resolver_in(text: str) -> str | None:
    """The resolver in an interpolation, if there is one. `${key}` names another key of the recipe;
    `${oc.env:SECRET}` would be written into the saved recipe, the checkpoints and the event files.
    """
    found = _RESOLVER.search(text)
    return f"{found.group()}...}}" if found else None


def _texts(value: Any, place: Place) -> Iterator[tuple[Place, str]]:
    """Every text in a value, keys too, with its place."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield (*place, key), str(key)
            yield from _texts(item, (*place, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _texts(item, (*place, number))
