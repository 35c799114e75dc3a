"""Reading YAML that people wrote: no code, no duplicate keys, nothing that grows or hangs, and the line of each key."""

import math
import re
from pathlib import Path
from typing import Any

import yaml

from gpt_modules.errors import UserError
from gpt_modules.storage.text_files import read_text

MAX_BYTES = 200_000
MAX_DEPTH = 50
MAX_NODES = 20_000
"""Of a document with its aliases written out."""

Place = tuple[str | int, ...]
"""Keys and positions from the root to a value."""
Lines = dict[Place, int]
"""Place of a value -> the line of its key, from 1."""


_EXPONENT, _INFINITE, _NO_NUMBER = r"[eE][-+]?\d+", r"\.(inf|Inf|INF)", r"\.(nan|NaN|NAN)"
_SCALARS = {
    "bool": r"true|True|TRUE|false|False|FALSE",
    "null": r"~|null|Null|NULL|",
    "int": r"[-+]?(0|[1-9][\d_]*)",
    "float": rf"[-+]?((0|[1-9][\d_]*)(\.\d*({_EXPONENT})?|{_EXPONENT})|\.\d+({_EXPONENT})?|{_INFINITE})|{_NO_NUMBER}",
    "merge": r"<<",
}
_MERGE = "tag:yaml.org,2002:merge"
_TAGS = {f"tag:yaml.org,2002:{name}" for name in (*_SCALARS, "str", "map", "seq")}


class PlainLoader(yaml.SafeLoader):
    """YAML 1.1 without what surprises: dates, base 60, base 8 written 010, and `on`, `off`, `yes`, `no` stay text;
    `1e-4` is a number.
    """


PlainLoader.yaml_implicit_resolvers = {}
for _name, _form in _SCALARS.items():
    PlainLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"(?:{_form})\Z"), None)


def read_yaml(path: Path) -> tuple[Any, Lines]:
    """What a YAML file holds, as plain values, and the line of each of its keys and items.

    Raises:
        UserError: with the line, for a file that is missing, no file, too large, not UTF-8, more than one
            document, too deep, has a key twice or one that is no text, or a number that no float holds.
    """
    return parse_yaml(read_text(path, "a YAML file", MAX_BYTES), path)


def parse_yaml(text: str, where: Path | str) -> tuple[Any, Lines]:
    """`read_yaml` of a text that came from `where`."""
    try:
        loader = PlainLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None, {}
        _measure(node, 1, {}, set())
        lines: Lines = {}
        _check(node, (), lines)
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UserError(f"{where}:{mark.line + 1 if mark else '?'}: {error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{where}:{line}: found character {error.character!r}, expected text") from error
    except RecursionError:
        raise UserError(f"{where}: found more than {MAX_DEPTH} levels, expected a recipe") from None


def _measure(node: yaml.Node, depth: int, sizes: dict[int, int], above: set[int]) -> int:
    """Values below a node with its aliases written out; each node is visited once."""
    if id(node) in above:
        raise _at(node, "an alias stands inside what it names")
    if depth > MAX_DEPTH:
        raise _at(node, f"found more than {MAX_DEPTH} levels")
    if id(node) not in sizes:
        above.add(id(node))
        sizes[id(node)] = 1 + sum(_measure(child, depth + 1, sizes, above) for child in _children(node))
        above.discard(id(node))
    if sizes[id(node)] > MAX_NODES:
        raise _at(node, f"found more than {MAX_NODES:,} values once its aliases are written out")
    return sizes[id(node)]


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _check(node: yaml.Node, place: Place, lines: Lines) -> None:
    """Keys are text and unique, values plain; remember the line of each."""
    lines[place] = node.start_mark.line + 1
    if isinstance(node, yaml.ScalarNode):
        _check_scalar(node, place)
    elif node.tag not in _TAGS:
        raise _at(node, f"could not determine a constructor for the tag {node.tag!r}, expected plain values")
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            _check(item, (*place, number), lines)
    elif isinstance(node, yaml.MappingNode):
        _check_mapping(node, place, lines)


def _check_mapping(node: yaml.MappingNode, place: Place, lines: Lines) -> None:
    seen: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
            shown = repr(key.value) if isinstance(key, yaml.ScalarNode) else "a list or mapping"
            raise _at(key, f"found key {shown}, expected text: put it in quotation marks")
        if key.value in seen:  # the last would win; a typo would then train something else for hours
            raise _at(key, f"key {key.value!r} stands twice, on lines {seen[key.value]} and {line}")
        seen[key.value] = line
        if key.tag != _MERGE:
            _check(value, (*place, key.value), lines)
            lines[(*place, key.value)] = line
    for key, value in node.value:
        if key.tag == _MERGE:
            _check_merged(value, place, lines)


def _check_merged(node: yaml.Node, place: Place, lines: Lines) -> None:
    """What `<<` adds stands at the place itself, where nothing else does; of several mappings the first wins."""
    for source in node.value if isinstance(node, yaml.SequenceNode) else [node]:
        inner: Lines = {}
        _check(source, place, inner)
        added = {where for where in inner if len(where) == len(place) + 1 and where not in lines}
        lines |= {where: line for where, line in inner.items() if where[: len(place) + 1] in added}


def _check_scalar(node: yaml.ScalarNode, place: Place) -> None:
    kind = node.tag.rpartition(":")[2]
    if any("\ud800" <= letter <= "\udfff" for letter in node.value):
        raise _at(node, f"{dotted(place)}: found half of a surrogate pair, expected text")
    if node.tag not in _TAGS:
        raise _at(node, f"could not determine a constructor for the tag {node.tag!r}, expected plain values")
    if kind in _SCALARS and not re.fullmatch(_SCALARS[kind], node.value):
        raise _at(node, f"{dotted(place)}: found {node.value[:40]!r}, expected a value of its tag, {kind}")
    if kind in ("int", "float") and not (len(node.value) < 400 and math.isfinite(float(_numeral(node.value)))):
        raise _at(node, f"{dotted(place)}: found {node.value[:40]}, expected a finite number")


def _numeral(text: str) -> str:
    return text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan")


def _at(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def dotted(place: Place) -> str:
    """A key as the command line takes it, which every message names it by: without the `init_args` between a class and
    its arguments, an item of a list by its number, `trainer.callbacks.0.monitor`.
    """
    return ".".join(str(part) for part in place if part != "init_args")
