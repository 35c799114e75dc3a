"""What the recipe parser complains of, in one line: where it was said, the key, what was found, what was expected.

The parser tells the path to a mistake in the middle of pages about the alternatives; the path is read from there, the
rest comes from the recipe and from the types of the keys.
"""

import difflib
import re
import sys
from collections.abc import Iterable, Iterator
from traceback import walk_tb
from typing import Any

from jsonargparse import ArgumentParser

from gpt_modules.commands.parsing.composition import Composition
from gpt_modules.commands.parsing.keys import class_keys, in_words, parser_keys, type_of
from gpt_modules.commands.parsing.vocabulary import DATA_MODULES, MODULES, named_classes
from gpt_modules.errors import UserError
from gpt_modules.scoring import import_theirs
from gpt_modules.storage.yaml_files import Place

SHOWN, LONGEST = 60, 380
_STEP = re.compile(
    r"""Parser\ key\ "(?P<key>[^"]+)"
    | Problem\ with\ given\ class_path\ '(?P<of>[^']+)'
    | Importing\ '(?P<denied>[^']+)'\ is\ not\ allowed
    | Expected\ a\ dot\ import\ path\ string:\ (?P<nameless>\S+)
    | Import\ path\ (?P<misfit>\S+)\ does\ not\ correspond
    | Group\ '(?P<group>[^']*)'\ does\ not\ accept\ option\ '(?P<grouped>[^']+)'
    | Subcommand\ '\w+'\ does\ not\ accept\ option\ '(?P<unknown>[^']+)'
    | Option\ '(?P<option>[^']+)'\ is\ not\ accepted
    | arguments\ are\ required:\ (?P<missing>[\w.]+)
    | (?P<file>Unable\ to\ load\ config)
    | Given\ value\ type""",
    re.VERBOSE,
)
_INTERPOLATION = re.compile(r"full_key: \w+\.(?P<key>\S+)")


def one_line(message: str) -> str:
    """A message that repeats its context on many lines, on one."""
    lines = [line.strip(" -") for line in message.splitlines() if line.strip(" -")]
    return re.sub(r"\s+", " ", " ".join(lines))


def users_mistake(error: BaseException) -> UserError | None:
    """The user's mistake that an error was made of: by its causes, and, where a value is of none of several types, by
    what each of them said, of which jsonargparse hands on the first and keeps the others in the frame that gives up.
    """
    waiting, seen = [error], set[int]()
    while waiting:
        found = waiting.pop(0)
        if isinstance(found, UserError):
            return found
        if id(found) in seen:
            continue
        seen.add(id(found))
        waiting += [cause for cause in (found.__cause__, found.__context__) if cause is not None]
        for frame, _ in walk_tb(found.__traceback__):
            said = frame.f_locals.get("exceptions")
            waiting += [of for of in said if isinstance(of, BaseException)] if isinstance(said, list) else []
    return None


def complaint(error: Exception, recipe: Composition, parser: ArgumentParser | None) -> UserError:
    """The line for an error of the parser, at most some 400 characters."""
    if told := _unimportable(recipe):
        return told
    text = one_line(str(error))
    if found := _INTERPOLATION.search(text):
        line = _interpolation(text, tuple(_parts(found["key"])), recipe, parser)
    else:
        line = _Reading(text, recipe, parser).line()
    return UserError(line if len(line) <= LONGEST else f"{line[:LONGEST]} ...")


def shown(value: Any) -> str:
    """A value as a complaint quotes it."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def nearest(name: str, known: Iterable[str]) -> str:
    """`; near it: ...`, or nothing."""
    known = sorted(set(known))
    near = difflib.get_close_matches(name, known, n=3) or [key for key in known if key.rpartition(".")[2] == name][:3]
    return f"; near it: {', '.join(near)}" if near else ""


class _Reading:
    """The parser's message, read from its outside to its inside."""

    def __init__(self, text: str, recipe: Composition, parser: ArgumentParser | None) -> None:
        self.text, self.recipe = text, recipe
        self.place: Place = ()
        self.keys = parser_keys(parser) if parser is not None else {}
        self.kind: Any = None
        self.below = ""  # of the last key that has a type

    def line(self) -> str:
        """Follow the steps until one says what is wrong."""
        for step in _STEP.finditer(self.text.replace(" fit.", " ") if self.recipe.values else ""):
            if step["key"]:
                if not self._enter(step["key"]):
                    break
            elif step["of"]:
                self._enter_class(step["of"])
            elif reason := self._reason(step):
                return reason
            else:
                break
        value = self.recipe.at(self.place)
        if not self.recipe.values:
            return "found no recipe, expected --config RECIPE; gpt recipes lists those that are here"
        if self.kind is None:
            return f"{self._where(self.place)}: {self.text}" if self.place else self.text
        return f"{self._where(self.place)}: found {shown(value)}, expected {_cut(in_words(self.kind))}"

    def _enter(self, key: str) -> bool:
        """Follow a key; False when it belongs to another alternative."""
        is_group = any(known.startswith(f"{key}.") for known in self.keys)
        if key not in self.keys and not is_group:
            return False
        self.place = self._below(key)
        if not is_group:
            self.kind, self.keys = type_of(self.keys[key]), {}
        return True

    def _enter_class(self, path: str) -> None:
        """Go into the class that a place names, or into the item of a list that names it."""
        value = self.recipe.at(self.place)
        items = list(enumerate(value)) if isinstance(value, list) else []
        self.place = next(((*self.place, number) for number, item in items if _names(item, path)), self.place)
        if _names(self.recipe.at(self.place), path):
            self.place = (*self.place, "init_args")
        self.keys = class_keys(kind) if isinstance(kind := _imported(path), type) else {}

    def _below(self, key: str) -> Place:
        """A key of what stands at the place, or of the first of several that has it."""
        parts, value = _parts(key), self.recipe.at(self.place)
        items = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else ()
        if not isinstance(value, dict) or parts[0] not in value:
            for name, item in items:
                if isinstance(item, dict) and parts[0] in item and parts[0] not in ("class_path", "init_args"):
                    return (*self.place, name, *parts)
        return (*self.place, *parts)

    def _reason(self, step: re.Match[str]) -> str | None:
        """What a step says is wrong, if it does."""
        if name := step["denied"]:
            return self._denied(name)
        if name := step["nameless"] or step["misfit"]:
            return self._no_class(name)
        if name := step["grouped"]:
            return self._no_key(f"{step['group']}.{name}")
        if name := step["unknown"] or step["option"]:
            return self._no_key(name)
        if name := step["missing"]:
            return f"{self._where(self._below(name))}: missing, expected {self._wanted(name)}"
        return self._file(self.place) if step["file"] else None

    def _file(self, place: Place) -> str:
        found = shown(self.recipe.at(place))
        return f"{self._where(place)}: found {found}, expected keys; a file of keys is given with --config"

    def _where(self, place: Place) -> str:
        return self.recipe.where(place)

    def _denied(self, name: str) -> str:
        place = self._naming(name)
        if (found := self.recipe.at(place)) != name and not _names(found, name):
            return f"{self._where(place)}: found {shown(found)}, expected a class_path and its init_args"
        package = name.partition(".")[0]
        if name.endswith((".yaml", ".yml", ".json")):
            return self._file(place)
        own = package not in (*sys.stdlib_module_names, "gpt_modules", "lightning", "torch")
        hint = f", or a package of yours named with --allow {package}" if own else ""
        allowed = f"what a recipe may name: gpt_modules, parts of Lightning, torch.nn{hint}"
        return f"{self._where(place)}: found {shown(found)}, expected {allowed}"

    def _naming(self, name: str) -> Place:
        """Where a class or function is named, in what the place belongs to."""
        base = self.place[:-1] if self.place[-1:] == ("init_args",) else self.place
        places = list(_places(self.recipe.at(base), base))
        exact = [place for place in places if self.recipe.at(place) == name]
        return next((place for place in (*exact, *places) if _names(self.recipe.at(place), name)), self.place)

    def _no_class(self, name: str) -> str:
        sections: dict[Place, tuple[type, ...]] = {("model",): MODULES, ("data",): DATA_MODULES}
        ours = sections.get(self.place)
        where = self._where(self._naming(name))
        if ours is not None:
            names = [kind.__name__ for kind in ours]
            return f"{where}: found {shown(name)}, expected one of {', '.join(names)}{nearest(name, names)}"
        kind = named_classes().get(name.rpartition(".")[2])  # one that does not belong here
        near = nearest(name, named_classes()) if kind is None else f"; {kind.__name__} is a {kind.__mro__[1].__name__}"
        return f"{where}: found {shown(name)}, expected {_cut(in_words(self.kind))}{near}"

    def _no_key(self, name: str) -> str:
        where = self._where(self._below(name))
        known = [key for key in self.keys if "." in key or "." not in name] or list(self.keys)
        group = name[: name.rfind(".") + 1]
        beside = (key.removeprefix(group).partition(".")[0] for key in self.keys if key.startswith(group))
        among = list(dict.fromkeys(group + key for key in beside))
        near = nearest(name, [*known, *among])
        listed = f"; expected one of {', '.join(among)}" if among and not near else ""
        return f"{where}: no such key{near}{_cut(listed)}"

    def _wanted(self, name: str) -> str:
        return _cut(in_words(type_of(self.keys[name]))) if name in self.keys else "a value"


def _interpolation(text: str, place: Place, recipe: Composition, parser: ArgumentParser | None) -> str:
    value = recipe.at(place)
    wanted = re.search(r"\$\{\s*\.*([^}]*)\}", str(value))
    known = [".".join(map(str, key)) for key in recipe.sources if key != place]  # which is written out there
    near = nearest(wanted[1].strip(), known) if wanted else ""
    found = shown(value) if value is not None else text
    return f"{recipe.where(place)}: found {found}, expected the name of a key that has a value{near}"


def _unimportable(recipe: Composition) -> UserError | None:
    """The line for a class of the user's own that is not where its name says, or whose module cannot be imported, of
    which the parser says only that its value is of no type.
    """
    for place in _places(recipe.values, ()):
        name = recipe.at(place)
        if not isinstance(name, str) or not any(name.startswith(f"{package}.") for package in recipe.allowed):
            continue
        module, _, attribute = name.rpartition(".")
        where = f"{recipe.where(place)}: found {shown(name)}"
        try:
            known = vars(import_theirs(module, f"{where}, expected a class of a package"))
        except UserError as error:
            return error
        if attribute not in known:
            return UserError(f"{where}, which is not in {module}{nearest(attribute, known)}")
    return None


def _parts(key: str) -> list[str]:
    return key.split(".")


def _names(value: Any, path: str) -> bool:
    """True for the name of a class, or a mapping with its name."""
    short = value.get("class_path") if isinstance(value, dict) else value
    return isinstance(short, str) and short.rpartition(".")[2] == path.rpartition(".")[2]


def _places(value: Any, place: Place) -> Iterator[Place]:
    """Every place in a value, the innermost first."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in pairs:
        yield from _places(item, (*place, key))
    yield place


def _imported(path: str) -> Any:
    """What the parser has imported already."""
    module, _, name = path.rpartition(".")
    return getattr(sys.modules.get(module), name, None)


def _cut(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]} ..."
