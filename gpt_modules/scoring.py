"""Scores of answers by a function of the user's own, on texts: found by its name, and not believed blindly."""

import copy
import difflib
import functools
import hashlib
import importlib
import inspect
import math
import signal
import sys
import sysconfig
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from contextlib import chdir
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from gpt_modules.errors import UserError
from gpt_modules.forks import forks_end_here

TextReward = Callable[..., Sequence[float]]
"""(prompts, responses), and by name what `further_arguments` finds."""
SHOWN = 40  # characters of a text in a message
_PACKAGE = str(Path(__file__).parent)
_NOT_THEIRS = (_PACKAGE, *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")))


def import_reward(name: str, field: str = "rewards.function") -> TextReward:
    """The callable that a recipe names, in `field`, as `package.module:name`, installed or in the current folder.

    Raises:
        UserError: when it cannot be found or imported.
    """
    module_name, _, attribute = name.partition(":")
    wanted = "expected 'package.module:name' of a callable"
    module = import_theirs(module_name, f"{field}: found {name!r}, {wanted}")
    function = getattr(module, attribute, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near = difflib.get_close_matches(attribute, known, n=1)
        hint = f"; did you mean {module_name}:{near[0]}?" if near else ""
        what = "is no callable" if hasattr(module, attribute) else f"is not in {module_name}"
        raise UserError(f"{field}: {name!r} {what}, {wanted}{hint}")
    return function  # type: ignore[no-any-return]


def look_here() -> None:
    """From now on a module may be of the current folder: `python -m` begins with it, an installed command does not."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last, to hide nothing


def import_theirs(name: str, expected: str) -> ModuleType:
    """A module, installed or in the current folder.

    Args:
        expected: the beginning of the line that tells why it cannot be had.

    Raises:
        UserError: it cannot be found or imported.
    """
    look_here()
    try:
        with forks_end_here(), chdir("."):
            return importlib.import_module(name)
    except BaseException as error:  # what stands in the file is the user's
        _let_end(error)
        raise UserError(f"{expected}, installed or in the current folder: {_told(error)}") from error


def source_digest(name: str, function: TextReward) -> str | None:
    """SHA-256 of a function with what it reads of its own file, a helper or a constant: its name there, the source of
    the module that names it, and that of the module that defines it, of an object its class. None where Python knows no
    source. A function of this package is its own source alone, as every version has changes around it.

    A helper in a file that these import stays unseen, and so does what is read from elsewhere.

    Args:
        name: as of `import_reward`, which found it.
    """
    module, _, attribute = name.partition(":")
    defined = _defining_module(function)
    if defined.partition(".")[0] == __package__:
        source = _source(function)
    elif (source := _source(sys.modules.get(defined))) is not None:
        named = _source(sys.modules[module]) if module != defined else ""  # None of one that was made in memory
        source = f"{attribute}\0{source}\0{named}"
    return None if source is None else hashlib.sha256(source.encode()).hexdigest()


def _source(of: Any) -> str | None:
    try:
        return inspect.getsource(of)
    except (OSError, TypeError):
        return None


def _defining_module(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    its_own = inspect.isroutine(function) or inspect.isclass(function)
    return str(getattr(function if its_own else type(function), "__module__", None))


def further_arguments(name: str, function: TextReward, known: Collection[str] = ()) -> dict[str, bool]:
    """Names of what a function asks for beside prompts and responses, each with whether it must have it; none where
    Python knows no signature. With `**columns` it asks for all that are known.

    Args:
        name: as of `text_scores`.
        known: names that are neither prompts nor responses.

    Raises:
        UserError: its first two arguments are not prompts and responses.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return {}
    kinds = inspect.Parameter
    places = [of.name for of in parameters if of.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)][:2]
    any_place = any(of.kind is kinds.VAR_POSITIONAL for of in parameters)
    fits = len(places) == 2 or any_place
    if not fits or places[:1] == ["responses"] or places[1:] == ["prompts"] or not set(known).isdisjoint(places):
        found = ", ".join(of.name for of in parameters) or "no arguments"
        raise UserError(f"{name} takes ({found:.80}), expected prompts and responses as its first two arguments")
    named = [of for of in parameters if of.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)]
    rest = known if any(of.kind is kinds.VAR_KEYWORD for of in parameters) else ()
    return dict.fromkeys(rest, False) | {of.name: of.default is kinds.empty for of in named if of.name not in places}


def unknown_argument(name: str, argument: str, known: Sequence[str]) -> UserError:
    """The line for an argument that nothing here is; `name` as of `text_scores`."""
    near = difflib.get_close_matches(argument, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    ours = f"prompts, responses{''.join(f', {one}' for one in known[:SHOWN])}"
    return UserError(f"{name} asks for {argument!r}, expected arguments of {ours}{hint}")


def text_scores(
    name: str,
    function: TextReward,
    prompts: list[str],
    responses: list[str],
    further: Mapping[str, Sequence[Any]] = MappingProxyType({}),
) -> list[float]:
    """One finite number a response.

    Args:
        name: of the function, as the messages say it, such as "rewards: package.module:name".
        further: what it asks for by name, of each response.

    Raises:
        UserError: the function raised, or gave something else; with its name and the example.
    """
    try:
        given = _call(function, prompts, responses, further)
    except BaseException as error:
        _let_end(error)
        raise UserError(f"{name} {_first_failure(function, prompts, responses, further, error)}") from error
    listed = hasattr(given, "__len__") and not isinstance(given, str | bytes | Mapping | Set)
    if not listed or getattr(given, "ndim", 1) != 1:
        shape = f" of shape {tuple(given.shape)}" if hasattr(given, "shape") else ""
        raise UserError(f"{name} gave {type(given).__name__}{shape}, expected a list of {len(prompts)} numbers")
    if len(given) != len(prompts):
        raise UserError(f"{name} gave {len(given)} scores, expected one for each of {len(prompts)} responses")
    return [_number(name, value, *texts) for value, *texts in zip(given, prompts, responses, strict=True)]


def _call(
    function: TextReward, prompts: Sequence[str], responses: Sequence[str], further: Mapping[str, Sequence[Any]]
) -> Any:
    with forks_end_here(), chdir("."):  # where it goes to, paths of the run would lead elsewhere
        return function([*prompts], [*responses], **_copied(further))


def _copied(further: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """The lists, and what is in them, are theirs to change: each answer to a prompt has its own."""
    return {key: [copy.deepcopy(value) for value in values] for key, values in further.items()}


def _number(name: str, value: Any, prompt: str, response: str) -> float:
    try:
        plain = value.tolist() if hasattr(value, "tolist") else value  # of numpy or torch
        number = math.nan if isinstance(plain, str | bytes) else float(plain)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{name} gave {_cut(repr(value))} {_example(prompt, response)}, expected a number")
    return number


def _first_failure(
    function: TextReward,
    prompts: list[str],
    responses: list[str],
    further: Mapping[str, Sequence[Any]],
    error: BaseException,
) -> str:
    """The first response that fails alone, as a batch does not tell which of them it was."""
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        try:
            _call(function, [prompt], [response], {key: [values[i]] for key, values in further.items()})
        except BaseException as alone:
            _let_end(alone)
            return f"raised {_told(alone)} {_example(prompt, response)}"
    return f"raised {_told(error)} for {len(prompts)} responses together, for none of them alone"


def _let_end(error: BaseException) -> None:
    """Raise again what ends the process for another reason than the function: Ctrl-C, and what this package makes of
    a signal. An exit of the function's own is its mistake: nobody would know that there are no scores.
    """
    if isinstance(error, KeyboardInterrupt):
        ends = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    else:
        frames = traceback.extract_tb(error.__traceback__)
        ends = isinstance(error, SystemExit) and Path(frames[-1].filename).is_relative_to(_PACKAGE)
    if ends:
        raise error


def _told(error: BaseException) -> str:
    """The error's name and first line, and where in the user's own code it was raised."""
    lines = str(error).strip().splitlines()
    said = f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_theirs(frame.filename)]
    if not own:
        return said
    path = Path(own[-1].filename)
    here = Path.cwd()
    return f"{said} ({path.relative_to(here) if path.is_relative_to(here) else path}:{own[-1].lineno})"


def _is_theirs(file: str) -> bool:
    """Whether code is neither this package's, nor Python's, nor installed, nor in no file ("<frozen ...>")."""
    return not file.startswith("<") and not any(Path(file).is_relative_to(place) for place in _NOT_THEIRS)


def _example(prompt: str, response: str) -> str:
    return f"for the response {_cut(response)!r} to {_cut(prompt)!r}"


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"
