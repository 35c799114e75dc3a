"""Reading YAML that people wrote: no code, no duplicate keys, errors with file and line."""

import re
from pathlib import Path
from typing import Any

import yaml

from gpt_modules.errors import UserError

_RESOLVER = re.compile(r"\$\{\s*[\w.]+\s*:")


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML lets the last of two equal keys win; a typo would then train something else for hours."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} stands twice, on lines {seen[key]} and {line}", key_node.start_mark
                )
            if isinstance(key, str):
                seen[key] = line
        return super().construct_mapping(node, deep)


def read_recipe(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: for a missing file, one that is no YAML mapping, or a duplicate key; with the line.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise UserError(f"{path}:{line}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: found {type(content).__name__}, expected a mapping of keys")
    refuse_resolvers(str(path), content)
    return content


def refuse_resolvers(where: str, content: Any) -> None:
    """An interpolation names another key of the recipe; `${oc.env:SECRET}` would be written into the saved recipe, the
    checkpoints and the event files.

    Raises:
        UserError: for a `${resolver:...}` in any text.
    """
    if isinstance(content, str) and (found := _RESOLVER.search(content)):
        raise UserError(f"{where}: found {found.group()}...}}, expected ${{key}} only: resolvers are not allowed")
    if isinstance(content, dict):
        refuse_resolvers(where, [*content, *content.values()])
    elif isinstance(content, list):
        for item in content:
            refuse_resolvers(where, item)
