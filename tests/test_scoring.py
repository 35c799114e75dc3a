"""A user's function as a reward: found where it lies, and every mistake of it one line with the example."""

import functools
import hashlib
import importlib
import inspect
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt_modules.cli import _exit_on_signal
from gpt_modules.errors import UserError
from gpt_modules.scoring import (
    further_arguments,
    import_reward,
    look_here,
    source_digest,
    text_scores,
    unknown_argument,
)

PROMPTS, RESPONSES = ["the film", "a story"], [" is good.", " is bad."]


def fails_on(word, error=ValueError):
    def function(prompts, responses):
        if any(word in response for response in responses):
            raise error(f"cannot read {word}\nand more")
        return [0.0] * len(responses)

    return function


RAISES = fails_on("")
HERE = f"{Path(__file__).relative_to(Path.cwd())}:{RAISES.__code__.co_firstlineno + 2}"


@pytest.mark.parametrize(
    "given",
    [[1, 0.5], (1.0, 0.5), np.array([1.0, 0.5]), torch.tensor([1.0, 0.5], requires_grad=True), [True, np.float32(0.5)]],
)
def test_numbers_of_any_kind_are_scores(given):
    assert text_scores("m:f", lambda *_: given, PROMPTS, RESPONSES) == [1.0, 0.5]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ([1.0], "m:f gave 1 scores, expected one for each of 2 responses"),
        ([1.0] * 3, "m:f gave 3 scores, expected one for each of 2 responses"),
        (None, "m:f gave NoneType, expected a list of 2 numbers"),
        (0.5, "m:f gave float, expected a list of 2 numbers"),
        ("12", "m:f gave str, expected a list of 2 numbers"),
        ({"a": 1, "b": 2}, "m:f gave dict, expected a list of 2 numbers"),
        (torch.zeros(2, 1), "m:f gave Tensor of shape (2, 1), expected a list of 2 numbers"),
        (torch.tensor(1.0), "m:f gave Tensor of shape (), expected a list of 2 numbers"),
        ({1.0, 2.0}, "m:f gave set, expected a list of 2 numbers"),
        ((number for number in (1.0, 2.0)), "m:f gave generator, expected a list of 2 numbers"),
        (
            [torch.zeros(1), torch.zeros(1)],
            "m:f gave tensor([0.]) for the response ' is good.' to 'the film', expected a number",
        ),
        (
            np.array([1.0, 1j]),
            "m:f gave np.complex128(1+0j) for the response ' is good.' to 'the film', expected a number",
        ),
        ([1.0, 10**400], f"m:f gave 1{'0' * 39}… for the response ' is bad.' to 'a story', expected a number"),
        ([1.0, None], "m:f gave None for the response ' is bad.' to 'a story', expected a number"),
        ([1.0, "2"], "m:f gave '2' for the response ' is bad.' to 'a story', expected a number"),
        ([float("nan"), 1.0], "m:f gave nan for the response ' is good.' to 'the film', expected a number"),
        ([1.0, float("inf")], "m:f gave inf for the response ' is bad.' to 'a story', expected a number"),
        ([1.0, [2.0]], "m:f gave [2.0] for the response ' is bad.' to 'a story', expected a number"),
    ],
)
def test_what_is_no_score_is_one_line(given, line):
    with pytest.raises(UserError) as error:
        text_scores("m:f", lambda *_: given, PROMPTS, RESPONSES)
    assert str(error.value) == line


def test_a_function_may_do_with_its_lists_what_it_likes():
    def first_only(prompts, responses):
        responses.clear()
        del prompts[1:]
        return [1.0] * len(prompts)

    with pytest.raises(UserError, match="gave 1 scores, expected one for each of 2 responses"):
        text_scores("m:f", first_only, PROMPTS, RESPONSES)
    assert (len(PROMPTS), len(RESPONSES)) == (2, 2)


def test_a_function_that_raises_names_the_example():
    with pytest.raises(UserError) as error:
        text_scores("m:f", fails_on("bad"), PROMPTS, RESPONSES)
    assert str(error.value) == (
        f"m:f raised ValueError: cannot read bad ({HERE}) for the response ' is bad.' to 'a story'"
    )


def test_one_that_fails_on_the_batch_alone_says_so():
    def function(prompts, responses):
        return [1 / (2 - len(responses))]

    with pytest.raises(UserError) as error:
        text_scores("m:f", function, PROMPTS, RESPONSES)
    where = HERE.partition(":")[0]
    line = rf"m:f raised ZeroDivisionError: division by zero \({where}:\d+\) for 2 responses together, for none of them"
    assert re.match(line, str(error.value))


def test_what_it_calls_is_told_by_the_line_that_calls():
    """A library's file helps nobody who did not write it."""
    with pytest.raises(UserError) as error:
        text_scores("m:f", lambda _, responses: json.loads(responses[0]), PROMPTS, RESPONSES)
    line = rf"m:f raised JSONDecodeError: .* \({HERE.partition(':')[0]}:\d+\) for the response ' is good.'"
    assert re.match(line, str(error.value))


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_function_that_wants_to_leave_is_one_line(error, monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda number: _exit_on_signal)
    with pytest.raises(UserError) as refused:
        text_scores("m:f", fails_on("bad", error), PROMPTS, RESPONSES)
    line = f"m:f raised {error.__name__}: cannot read bad ({HERE}) for the response ' is bad.' to 'a story'"
    assert str(refused.value) == line


@pytest.mark.parametrize(
    ("ends", "error"), [(_exit_on_signal, SystemExit), (signal.default_int_handler, KeyboardInterrupt)]
)
def test_a_signal_while_it_scores_ends_all_the_same(ends, error):
    def function(prompts, responses):
        signal.raise_signal(signal.SIGINT)
        return [0.0] * len(prompts)

    before = signal.signal(signal.SIGINT, ends)
    try:
        with pytest.raises(error):
            text_scores("m:f", function, PROMPTS, RESPONSES)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_function_that_changes_the_folder_leaves_the_runs_paths_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "wandering.py").write_text("import os\nos.chdir('/')\ndef f(p, r):\n    os.chdir('/')\n    return r\n")
    function = import_reward("wandering:f")
    assert Path.cwd() == tmp_path
    assert text_scores("m:f", lambda *given: [float(len(function(*given)))], ["a"], ["b"]) == [1.0]
    assert Path.cwd() == tmp_path


def test_long_texts_do_not_fill_the_screen():
    """A text of 40 characters stands there whole, and of an error's line 160."""
    with pytest.raises(UserError) as error:
        text_scores("m:f", lambda *_: [None], ["p" * 10_000], ["r" * 40])
    cut = "for the response '" + "r" * 40 + "' to '" + "p" * 40 + "…'"
    assert str(error.value) == f"m:f gave None {cut}, expected a number"
    with pytest.raises(UserError) as error:
        text_scores("m:f", fails_on("r" * 200), ["p" * 10_000], ["r" * 200])
    told = f"cannot read {'r' * 148} ({HERE}) for the response '{'r' * 40}…' to '{'p' * 40}…'"
    assert str(error.value) == f"m:f raised ValueError: {told}"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the user's package in it, which Python does not look into by itself."""
    folder = tmp_path / "my_rewards_here"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "scores.py").write_text(
        "def politeness(prompts, responses):\n    return [float(len(r)) for r in responses]\n"
        "NUMBER = 3\ndef _inner(prompts, responses):\n    return []\n"
    )
    (folder / "broken.py").write_text("1 / 0\n")
    (folder / "leaves.py").write_text("import sys\nsys.exit(3)\n")
    (folder / "lacks.py").write_text("import no_such\n")
    (folder / "slip.py").write_text("f(\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("my_rewards_here")]:
        del sys.modules[name]


def test_a_package_of_the_current_folder_is_found(here):
    assert import_reward("my_rewards_here.scores:politeness")([], ["abc"]) == [3.0]
    assert sys.path[-1] == str(here), "last, so that it hides nothing that is installed"


def test_modules_of_the_current_folder_are_found_by_any_import_from_then_on(here):
    for _ in range(2):
        look_here()
    assert sys.path.count(str(here)) == 1
    importlib.import_module("my_rewards_here.scores")


WANTED = "expected 'package.module:name' of a callable"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("scores:politenes", "is not in @scores, {}; did you mean @scores:politeness?"),
        ("scores:NUMBER", "is no callable, {}"),
        ("scores:NUMBE", "is not in @scores, {}"),
        ("scores:inner", "is not in @scores, {}"),
        ("scores", "is not in @scores, {}"),
    ],
)
def test_a_name_that_is_not_there_is_one_line_with_a_public_callable_near_it(here, name, told):
    with pytest.raises(UserError) as error:
        import_reward(f"my_rewards_here.{name}")
    line = f"rewards.function: 'my_rewards_here.{name}' " + told.format(WANTED)
    assert str(error.value) == line.replace("@", "my_rewards_here.")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("my_rewards_here.score:politeness", "ModuleNotFoundError: No module named 'my_rewards_here.score'"),
        ("my_rewards_here.broken:f", "ZeroDivisionError: division by zero (my_rewards_here/broken.py:1)"),
        ("my_rewards_here.leaves:f", "SystemExit: 3 (my_rewards_here/leaves.py:2)"),
        ("my_rewards_here.lacks:f", "ModuleNotFoundError: No module named 'no_such' (my_rewards_here/lacks.py:1)"),
        ("my_rewards_here.slip:f", "SyntaxError: '(' was never closed (slip.py, line 1)"),
        ("no_such_module:f", "ModuleNotFoundError: No module named 'no_such_module'"),
        (":f", "ValueError: Empty module name"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(here, name, told):
    with pytest.raises(UserError) as error:
        import_reward(name)
    where = "installed or in the current folder"
    assert str(error.value) == f"rewards.function: found '{name}', {WANTED}, {where}: {told}"


def test_a_relative_name_is_one_line():
    with pytest.raises(UserError, match=r"^rewards\.function: found '\.\.a:f', .*: TypeError: [^\n]*$") as error:
        import_reward("..a:f")
    assert len(str(error.value)) < 400


@pytest.mark.slow
def test_the_installed_command_finds_it_too(here):
    """`python -m` puts the current folder on the path, a console script does not: as with `-P`."""
    wanted = "my_rewards_here.scores:politeness"
    code = f"from gpt_modules.scoring import import_reward; print(import_reward({wanted!r}))"
    root = Path(__file__).parents[1]
    environment = {"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"}
    found = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=here, env=environment, capture_output=True, text=True, check=False
    )
    assert "function politeness" in found.stdout, found.stderr


WEIGHED = """
import functools
from my_rewards_here.judges import Judge, scale
BAD = 1.0
def _of(response):
    return -BAD * len(response)
def politeness(prompts, responses):
    return [_of(response) for response in responses]
def other(prompts, responses):
    return [_of(response) for response in responses]
judge = Judge(0.5)
scaled = functools.partial(scale, by=2)
method = Judge(0.5).__call__
"""
JUDGES = """
HALF = 0.5
class Judge:
    def __init__(self, by):
        self.by = by
    def __call__(self, prompts, responses):
        return [self.by * HALF for _ in responses]
def scale(prompts, responses, by):
    return [by * HALF for _ in responses]
"""
NAMES = ("politeness", "other", "judge", "scaled", "method", "Judge", "scale")


def digests(here, **texts):
    """Of all NAMES, as a process has them that begins with these files."""
    for name, text in texts.items():
        (here / "my_rewards_here" / f"{name}.py").write_text(text)
    for name in ("my_rewards_here.scores", "my_rewards_here.judges"):
        sys.modules.pop(name, None)
    importlib.invalidate_caches()
    full = {name: f"my_rewards_here.scores:{name}" for name in NAMES}
    return {name: source_digest(path, import_reward(path)) for name, path in full.items()}


@pytest.mark.parametrize(
    ("file", "old", "new", "same"),
    [
        ("scores", "-BAD * len", "BAD * len", ()),  # a helper
        ("scores", "BAD = 1.0", "BAD = 2.00", ()),  # a constant
        ("scores", "Judge(0.5)\nscaled", "Judge(0.75)\nscaled", ()),  # what an object was made with
        ("scores", "by=2", "by=-2", ()),
        ("judges", "HALF = 0.5", "HALF = 0.25", ("politeness", "other")),  # what an object's class reads
        ("scores", "BAD", "BAD", NAMES),
    ],
)
def test_a_digest_follows_the_files_that_name_and_define_a_function(here, file, old, new, same):
    texts = {"scores": WEIGHED, "judges": JUDGES}
    before = digests(here, **texts)
    assert old in texts[file]
    after = digests(here, **texts | {file: texts[file].replace(old, new)})
    assert None not in before.values()
    assert len(set(before.values())) == len(NAMES), "two functions of one file are two"
    assert tuple(name for name in NAMES if before[name] == after[name]) == same


def test_what_has_no_source_has_no_digest():
    for name in ("builtins:len", "math:dist", "itertools:count"):
        assert source_digest(name, import_reward(name)) is None


def test_a_function_of_this_package_is_its_own_source_alone():
    """A release that changes what stands around it would else be said at every run that goes on."""
    name = "gpt_modules.evaluation.sentiment:vader"
    vader = import_reward(name)
    assert source_digest(name, vader) == hashlib.sha256(inspect.getsource(vader).encode()).hexdigest()


def test_what_a_function_asks_for_beside_prompts_and_responses():
    class Judge:
        def __call__(self, prompts, responses, answer):
            return []

    def loose(*texts, ended, **others):
        return []

    assert further_arguments("m:f", lambda questions, answers: []) == {}
    assert further_arguments("m:f", lambda *_: []) == {}
    assert further_arguments("m:f", lambda p, r, answer, ended=None, *, level: []) == {
        "answer": True, "ended": False, "level": True
    }  # fmt: skip
    assert further_arguments("m:f", Judge()) == {"answer": True}
    assert further_arguments("m:f", functools.partial(Judge(), answer=3)) == {"answer": False}
    assert further_arguments("m:f", loose) == {"ended": True}
    assert further_arguments("m:f", loose, ["answer", "ended"]) == {"answer": False, "ended": True}
    assert further_arguments("m:f", max) in ({}, {"key": False, "default": False})


@pytest.mark.parametrize(
    ("function", "taken"),
    [
        (lambda: [], "no arguments"),
        (lambda prompts: [], "prompts"),
        (lambda responses, prompts: [], "responses, prompts"),
        (lambda prompts, ended: [], "prompts, ended"),
        (lambda *, prompts, responses: [], "prompts, responses"),
    ],
)
def test_a_function_that_does_not_begin_with_prompts_and_responses_is_refused(function, taken):
    line = f"m:f takes ({taken}), expected prompts and responses as its first two arguments"
    with pytest.raises(UserError, match=f"^{re.escape(line)}$"):
        further_arguments("m:f", function, ["ended"])


def test_an_argument_that_is_nothing_is_told_with_what_there_is():
    line = "m:f asks for 'anwser', expected arguments of prompts, responses, ended, answer; did you mean answer?"
    assert str(unknown_argument("m:f", "anwser", ["ended", "answer"])) == line
    assert str(unknown_argument("m:f", "x", [])) == "m:f asks for 'x', expected arguments of prompts, responses"


def test_what_it_asks_for_comes_by_name_and_the_first_failure_is_with_its_own():
    def equal(prompts, responses, answer):
        if None in answer:
            raise ValueError("no answer")
        return [float(a == r) for a, r in zip(answer, responses, strict=True)]

    answers = {"answer": (RESPONSES[0], "another")}
    assert text_scores("m:f", equal, PROMPTS, RESPONSES, answers) == [1.0, 0.0]
    assert answers == {"answer": (RESPONSES[0], "another")}
    with pytest.raises(UserError, match=rf"^m:f raised ValueError: no answer .*for the response {RESPONSES[1]!r} to "):
        text_scores("m:f", equal, PROMPTS, RESPONSES, {"answer": ["a", None]})
