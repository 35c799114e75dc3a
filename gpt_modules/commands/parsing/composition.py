"""The words of `gpt fit` as one recipe, and where each of its values was said.

Recipes are laid over one another in order, then the keys of the command line over all of them, wherever they stand:
mappings are merged key by key, anything else is replaced, `key+` appends to a list.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from gpt_modules.errors import UserError
from gpt_modules.storage.recipes import find_recipe, read_with_lines, resolver_in
from gpt_modules.storage.yaml_files import Lines, Place, dotted, parse_yaml

_CLASSES = (("model",), ("data",))  # places of a class and its arguments, whether or not the class has been named yet
_OF_A_CLASS = ("class_path", "init_args", "dict_kwargs")
_STAGES = ("stages", "round")  # what a pipeline has, one of them at least
_SHOWN = 100
_REFERENCE = re.compile(r"\$\{\s*(\w+(?:\.\w+)*)\s*\}")
_ASKS = re.compile(r"-h|--help|--print_config|--.*\.help")


class Option(NamedTuple):
    """`--name value...`, `--name=value` or `-c value`."""

    name: str
    values: list[str]


class Assignment(NamedTuple):
    """One value of one key, as a file or an option says it.

    parts: the key's parts, the last one with `+` when the value is to be appended.
    sources: place inside the value, () for itself -> where it was said, `file:line` or `--key`.
    """

    parts: list[str]
    value: Any
    sources: dict[Place, str]


@dataclass
class Composition:
    """One recipe.

    Args:
        values: the recipe as nested mappings; texts of the command line are left for the key's type to read.
        sources: place -> where it was last said.
        configs: the names that `--config` gave, in order, and their files.
        allowed: packages that `--allow` names.
        asked: words that ask for something else than a value, such as `--print_config`.
        help: what `--help` is asked about, None when it is not asked for.
    """

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[Place, str] = field(default_factory=dict)
    configs: list[tuple[str, Path]] = field(default_factory=list)
    allowed: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    help: list[str] | None = None

    def where(self, place: Place) -> str:
        """The beginning of a complaint about a place: where it was said, and its key; of the command line, as it may be
        said there, which is not always how it was.
        """
        below = (source for inner, source in self.sources.items() if place and inner[: len(place)] == place)
        source, key = self._source(place) or next(below, None), dotted(place)
        if source is None:
            return key
        return f"--{key}" if source.startswith("--") else f"{source}: {key}"

    def said_at(self, place: Place) -> Place:
        """Where the value of a place was said: of one that says `${key}`, at that key."""
        seen: set[Place] = set()
        while place not in seen and (found := _REFERENCE.fullmatch(str(self.at(place)))):
            seen.add(place)
            other: Place = tuple(int(part) if part.isdecimal() else part for part in found[1].split("."))
            if self.at(other) is None:
                break
            place = other
        return place

    def is_asked(self, place: Place) -> bool:
        """Whether the command line says it, and no file."""
        return (self._source(place) or "").startswith("--")

    def overrules(self, place: Place, other: Place) -> bool:
        """Whether a place was said after the other one: on the command line, or in a later file."""
        return self._turn(place) > self._turn(other)

    def _turn(self, place: Place) -> int:
        """When it was said, or the last of its parts: the number of the file, the command line after all of them;
        nobody said it before any.
        """
        whole, files = self._source(place), [str(path) for _, path in self.configs]
        parts = (source for inner, source in self.sources.items() if inner[: len(place)] == place)
        said = [source.rpartition(":")[0] for source in ([whole] if whole else parts)]
        turns = [len(files) - 1 - files[::-1].index(file) if file in files else len(files) for file in said]
        return max(turns, default=-1)

    def _source(self, place: Place) -> str | None:
        """Who said the place, or what it is part of."""
        said = (self.sources.get(place[:length]) for length in range(len(place), 0, -1))
        return next(filter(None, said), None)

    def at(self, place: Place) -> Any:
        """The value at a place, None where nothing is."""
        node: Any = self.values
        for part in place:
            if isinstance(node, list) and isinstance(part, int):
                node = node[part] if part < len(node) else None
            else:
                node = node.get(part) if isinstance(node, dict) else None
        return node

    def assign(self, assignment: Assignment) -> Place:
        """Lay one value over what stands there. Returns its place, of a class alone that of its name.

        Raises:
            UserError: when the key leads into a value that has no keys.
        """
        place: list[str | int] = []
        self.values = self._put(self.values, assignment.parts, assignment, place)
        if tuple(place) in _CLASSES and isinstance(assignment.value, str):
            place.append("class_path")
        for inner in [inner for inner in self.sources if inner[: len(place)] == tuple(place)]:
            del self.sources[inner]
        self.sources |= {(*place, *inner): source for inner, source in assignment.sources.items()}
        return tuple(place)

    def _put(self, node: Any, parts: Sequence[str], assignment: Assignment, place: list[str | int]) -> Any:
        """`node` with the value below it; `place` becomes where it stands."""
        if not parts:
            is_class = tuple(place) in _CLASSES and isinstance(node, dict) and isinstance(assignment.value, str)
            return {**node, "class_path": assignment.value} if is_class else assignment.value
        node, head = _opened(node, assignment), parts[0]
        if isinstance(node, list):
            index = int(head) if head.isdecimal() else len(node) - 1
            if index not in range(len(node)):
                raise UserError(f"{assignment.sources[()]}: found no item {head!r} in a list of {len(node)}")
            place.append(index)
            node[index] = self._put(node[index], parts[1:] if head.isdecimal() else parts, assignment, place)
            return node
        if (tuple(place) in _CLASSES or "class_path" in node) and head not in _OF_A_CLASS:
            head, parts = "init_args", ["init_args", *parts]
        if head.endswith("+") and len(parts) == 1:
            head, items = head[:-1], _items(node.get(head[:-1]), assignment.sources[()])
            if assignment.value in (None, "", "null", "~"):
                raise UserError(f"{assignment.sources[()]}: found nothing to add, expected an item of the list {head}")
            place += [head, len(items)]
            return {**node, head: [*items, assignment.value]}
        place.append(head)
        return {**node, head: self._put(node.get(head), parts[1:], assignment, place)}


def compose(words: Sequence[str]) -> Composition:
    """The recipe that the words describe.

    Raises:
        UserError: for a word that belongs to no option, an option without its value, or a file that cannot be read.
    """
    whole, keys = Composition(), []
    for option in read_options(words):
        if option.name in ("--config", "-c"):
            whole.configs += [(name, find_recipe(name)) for name in option.values]
        elif option.name == "--allow":
            whole.allowed += map(_package, option.values)
        elif option.name in ("--help", "-h"):
            whole.help = option.values
        elif _ASKS.fullmatch(option.name):
            whole.asked += [f"{option.name}={value}" for value in option.values] or [option.name]
        else:
            keys.append(option)
    for _, path in whole.configs:
        said: dict[Place, Assignment] = {}
        for assignment in _file_assignments(path):
            _add_once(said, whole.assign(assignment), assignment)
    for option in keys:
        for assignment in _option_assignments(option):
            whole.assign(assignment)
    return whole


def expect_procedure(recipe: Composition) -> None:
    """Files are of a procedure; how it is to run may be laid over them, and is nothing alone.

    Raises:
        UserError: they say neither what is trained nor on what.
    """
    if not recipe.configs or recipe.help is not None or recipe.asked:
        return
    if not recipe.values.get("data") and recipe.at(("model", "class_path")) is None:
        name, path = recipe.configs[-1]
        raise UserError(f"{path}: found neither a model nor data, as in an overlay, expected a recipe before it: "
                        f"--config RECIPE --config {name}")  # fmt: skip


def _add_once(said: dict[Place, Assignment], place: Place, assignment: Assignment) -> None:
    """Note what a file says of a place: the last of two spellings would win.

    Raises:
        UserError: the file said something of it, or of what is above or below, that is lost.
    """
    for other, earlier in said.items():
        shorter = min((other, earlier), (place, assignment), key=lambda one: len(one[0]))
        same = other[: len(shorter[0])] == place[: len(shorter[0])]
        opened = shorter[1] is earlier and isinstance(earlier.value, str | list | dict)  # a class, items or keys
        if same and (len(other) == len(place) or not opened):
            first = earlier.sources[()].rpartition(":")[2]
            found = f"found this key a second time, in another spelling on line {first}"
            raise UserError(f"{assignment.sources[()]}: {dotted(place)}: {found}, expected it once")
    said[place] = assignment


def _package(name: str) -> str:
    if not all(part.isidentifier() for part in name.split(".")):
        raise UserError(f"--allow: found {name[:60]!r}, expected the name of a package")
    return name


def read_options(words: Sequence[str]) -> list[Option]:
    """Options with the words that follow them, in order.

    Raises:
        UserError: for a word before any option, or an option that needs a value and has none.
    """
    options: list[Option] = []
    for word in words:
        if re.match(r"--.|-[ch](=|$)", word):
            name, attached, value = word.partition("=")
            options.append(Option(name, [value] if attached else []))
        elif options:
            options[-1].values.append(word)
        else:
            raise UserError(f"found {word!r}, which belongs to no option; expected --config RECIPE or --KEY VALUE")
    for option in options:
        if not option.values and not _ASKS.fullmatch(option.name):
            raise UserError(f"{option.name}: found no value, expected one")
    return options


def _file_assignments(path: Path) -> Iterator[Assignment]:
    content, lines = read_with_lines(path)
    if not content:
        raise UserError(f"{path}: found no key, expected those of a recipe")
    for key in (key for key in _STAGES if key in content):
        raise UserError(f"{path}:{lines[(key,)]}: {key}: found a pipeline, expected a recipe; gpt run runs it")
    if "config" in content:
        raise UserError(f"{path}:{lines[('config',)]}: config: a recipe names no other; give each with --config")
    _check_keys(lines, str(path))
    for place, value in _leaves(content, ()):
        parts = [*place[0].split("."), *place[1:]]
        several = parts[-1].endswith("+") and isinstance(value, list)
        for spot, item in (
            [((*place, number), item) for number, item in enumerate(value)] if several else [(place, value)]
        ):
            inside = {
                there[len(spot) :]: f"{path}:{line}" for there, line in lines.items() if there[: len(spot)] == spot
            }
            yield Assignment(parts, item, inside)


def _check_keys(lines: Lines, source: str) -> None:
    """Every key in a value that was read, those in its lists too, is names.

    Args:
        source: a file, or the option in which the value stands.
    """
    for place, line in lines.items():
        where = source if source.startswith("--") else f"{source}:{line}"
        if place[-1:] == ("",):
            within = f"{dotted(place[:-1])}: " if place[:-1] else ""
            raise UserError(f"{where}: {within}found an empty key, expected a name")
        if place and isinstance(place[-1], str):
            _check_key(place[-1].split("."), where, dotted(place))


def _check_key(parts: Sequence[str], source: str, key: str) -> None:
    """Every part of a key is a name.

    Raises:
        UserError: one is empty, stands among blanks, or is longer than any name.
    """
    if not all(part and part == part.strip() and len(part) <= _SHOWN for part in parts):
        shown = repr(key) if len(key) <= _SHOWN else f"{key[:_SHOWN]!r}... ({len(key)} characters)"
        raise UserError(f"{source}: found key {shown}, expected names with a dot between them")


def _option_assignments(option: Option) -> Iterator[Assignment]:
    key, source = option.name[2:], option.name
    for text in (key, *option.values):
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            shown = source.encode(errors="backslashreplace").decode()
            raise UserError(f"{shown}: found bytes that are not UTF-8, expected text")
        if resolver := resolver_in(text):
            raise UserError(f"{source}: found {resolver}, expected ${{key}} only: resolvers are not allowed")
    parts = key.split(".")
    _check_key(parts, source[:_SHOWN], key)
    source = f"--{dotted(tuple(parts))}"
    if key.endswith("+"):
        for text in option.values:
            yield from (Assignment(parts, item, {(): source}) for item in _items(text, source))
        return
    value: Any = option.values[0] if len(option.values) == 1 else list(option.values)
    content = _flow(value, source) if isinstance(value, str) and value[:1] in ("[", "{") and ":" in value else value
    for place, leaf in _leaves(content, ()):
        yield Assignment([*parts, *place], leaf, {(): source})


def _leaves(value: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """What is laid over as one: everything but mappings with keys."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, (*place, key))
    else:
        yield place, value


def _flow(text: str, source: str) -> Any:
    """A list or mapping that stands on the command line; a text that only begins like one is that text."""
    try:
        content, lines = parse_yaml(text, source)
    except UserError as error:
        if "stands twice" in str(error) or "found more than" in str(error):
            raise
        return text
    _check_keys(lines, source)
    return content


def _opened(node: Any, assignment: Assignment) -> Any:
    """What stands where a key leads further in, as something that has keys: a class's name is a class without
    arguments, and any other text, such as a folder, gives way.
    """
    source = assignment.sources[()]
    if isinstance(node, str) and node[:1] in ("[", "{"):
        node = _flow(node, source)
    if isinstance(node, str):
        node = {"class_path": node} if all(part.isidentifier() for part in node.split(".")) else None
    if node is not None and not isinstance(node, (dict, list)):
        raise UserError(f"{source}: found the value {node!r} where the key leads further in, expected keys or nothing")
    return {} if node is None else node


def _items(value: Any, source: str) -> list[Any]:
    """A value as what it adds to a list."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        value = _flow(value, source)
    return list(value) if isinstance(value, list) else [] if value is None else [value]
