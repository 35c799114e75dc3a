"""Do the tests notice when the code is wrong? Changes one expression at a time and runs the tests that reach it.

    python tests/benchmarks/mutation.py gpt_modules/functional
    python tests/benchmarks/mutation.py gpt_modules/training/ppo.py --tests tests/training --sample 60 --seed 0

For each file: how many mutants there are, how many the tests killed, and those that survived, with line and change. A
mutant is killed where a test fails or does not end. Without `--tests` the tests are those of the same name under
tests/; only the ones that reach the changed line run, the quick ones first.

All happens in a copy of the tree, so that processes which tests start see the mutant too. A mutant inside a function
is a new code object in a fork of a pytest that has collected everything, and costs what its tests cost. One of what
runs at import (constants, defaults, class bodies) needs a pytest of its own, some seconds.
"""

import argparse
import ast
import contextlib
import gc
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
COPIED = ("gpt_modules", "tests", "recipes", "notebooks", "pyproject.toml", "README.md", "CONTRIBUTING.md", "Makefile")
LIBRARIES = (
    "torch", "lightning.pytorch", "torchmetrics", "datasets", "transformers", "tokenizers", "hypothesis", "matplotlib",
    "beartype", "tensorboard", "scipy.stats", "sklearn.metrics", "torch.distributed.fsdp", "jsonargparse", "omegaconf",
)  # fmt: skip
PLUGINS = ("jaxtyping", "_hypothesis_pytestplugin")
PROGRESS = os.fdopen(os.dup(2), "w")  # pytest takes the usual streams for itself
PATIENCE = 30.0  # seconds beyond five times what its tests need, after which a mutant counts as endless
COMPARED = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "=="}
COMPARED |= {ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in"}
COMPUTED = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "/", ast.Mod: "+", ast.Pow: "*"}
COMPUTED |= {ast.BitAnd: "|", ast.BitOr: "&", ast.MatMult: "*"}


@dataclass(frozen=True)
class Mutant:
    """One change: the characters `start` to `end` of a file become `new`."""

    file: str
    line: int
    start: int
    end: int
    old: str
    new: str

    def applied(self, source: str) -> str:
        return source[: self.start] + self.new + source[self.end :]


class Mutator(ast.NodeVisitor):
    """Collects the mutants of a file. Annotations, docstrings and imports are left alone."""

    def __init__(self, file: str, source: str) -> None:
        self.file, self.source = file, source
        self.offsets = [0]
        for line in source.splitlines(keepends=True):
            self.offsets.append(self.offsets[-1] + len(line))
        self.mutants: list[Mutant] = []
        self.visit(ast.parse(source))

    def _place(self, line: int, column: int) -> int:
        text = self.source[self.offsets[line - 1] : self.offsets[line]]
        return self.offsets[line - 1] + len(text.encode()[:column].decode())

    def _span(self, node: Any) -> tuple[int, int]:
        return self._place(node.lineno, node.col_offset), self._place(node.end_lineno, node.end_col_offset)

    def _change(self, line: int, start: int, end: int, new: str) -> None:
        mutant = Mutant(self.file, line, start, end, self.source[start:end], new)
        with contextlib.suppress(SyntaxError, ValueError):
            ast.parse(mutant.applied(self.source))
            self.mutants.append(mutant)

    def _replace(self, node: Any, new: str) -> None:
        self._change(node.lineno, *self._span(node), new)

    def _between(self, left: Any, right: Any, old: str, new: str) -> None:
        """The operator between two expressions, wherever brackets and comments stand."""
        start, end = self._span(left)[1], self._span(right)[0]
        at = self.source[start:end].find(old)
        if at >= 0:
            self._change(right.lineno, start + at, start + at + len(old), new)

    # --- what is left alone ---

    def visit_Import(self, node: ast.Import) -> None:
        """Nothing to change."""

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """Nothing to change."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """The values in an f-string, not its words."""
        for part in node.values:
            if isinstance(part, ast.FormattedValue) and node.lineno == node.end_lineno:
                self.visit(part.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_arg(self, node: ast.arg) -> None:
        """An annotation is no behaviour."""

    def visit_Assign(self, node: ast.Assign) -> None:
        names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        typing = isinstance(node.value, ast.Subscript) and names and names[0][0].isupper()
        if names != ["__all__"] and not typing:
            self.visit(node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for decorator in node.decorator_list:
            if "no_grad" in ast.unparse(decorator):
                start, end = self._span(decorator)
                self._change(decorator.lineno, start - 1, end, "")
        for default in [*node.args.defaults, *node.args.kw_defaults]:
            if default is not None:
                self.visit(default)
        for statement in node.body:
            self.visit(statement)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for statement in node.body:
            self.visit(statement)

    # --- what is changed ---

    def visit_Compare(self, node: ast.Compare) -> None:
        before = [node.left, *node.comparators]
        for left, operator, right in zip(before, node.ops, node.comparators, strict=False):
            words = {ast.NotIn: "not in", ast.IsNot: "is not", ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.In: "in"}
            words |= {ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Is: "is"}
            self._between(left, right, words[type(operator)], COMPARED[type(operator)])
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        words = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%"}
        words |= {ast.Pow: "**", ast.BitAnd: "&", ast.BitOr: "|", ast.MatMult: "@"}
        self._between(node.left, node.right, words[type(node.op)], COMPUTED[type(node.op)])
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        words = {ast.Add: "+=", ast.Sub: "-=", ast.Mult: "*=", ast.Div: "/=", ast.BitOr: "|=", ast.BitAnd: "&="}
        self._between(node.target, node.value, words[type(node.op)], COMPUTED[type(node.op)] + "=")
        self._between(node.target, node.value, words[type(node.op)], "=")
        self.visit(node.value)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        self._replace(node, f"({ast.unparse(node.operand)})")
        self.visit(node.operand)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._between(left, right, old, new)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self._replace(node, str(not value))
        elif isinstance(value, int | float):
            self._replace(node, repr(value + 1))
        elif isinstance(value, str):
            self._replace(node, repr(f"XX{value}"))

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant):  # a docstring
            return
        if isinstance(node.value, ast.Call):
            self._replace(node, "pass")
        self.visit(node.value)

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None and ast.unparse(node.value) != "None":
            self._replace(node, "return None")
            self.visit(node.value)

    def visit_Call(self, node: ast.Call) -> None:
        called = ast.unparse(node.func)
        if called in ("TypeVar", "cast") or called.endswith("Error"):
            return
        arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
        for i in range(len(arguments)):
            if i < len(node.args) and len(node.args) == 1:
                continue  # a call without its one argument only crashes
            kept = [ast.unparse(part) for j, part in enumerate([*node.args, *node.keywords]) if j != i]
            self._replace(node, f"{called}({', '.join(kept)})")
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self._negate(test)
        self.generic_visit(node)

    def _negate(self, test: ast.expr) -> None:
        if not isinstance(test, ast.Compare | ast.BoolOp | ast.UnaryOp):
            self._replace(test, f"(not ({ast.unparse(test)}))")


# --- which tests reach which lines ---


class Reached:
    """Which lines of the package each test reaches, and how long each takes."""

    def __init__(self, lines: dict[str, set[tuple[str, int]]], seconds: dict[str, float]) -> None:
        self.lines, self.seconds = lines, seconds

    def tests(self, mutant: Mutant) -> list[str]:
        """Those that reach the line; of a line that only runs at import all that reach the file."""
        place = (mutant.file, mutant.line)
        found = [name for name, lines in self.lines.items() if place in lines]
        if not found:
            found = [name for name, lines in self.lines.items() if any(file == mutant.file for file, _ in lines)]
        return sorted(found, key=lambda name: self.seconds[name])


class Tracer:
    """Notes the lines of `package` that run; what runs in fixtures that tests share counts for all of them."""

    def __init__(self, package: Path) -> None:
        self.package, self.root = str(package) + "/", str(package.parent) + "/"
        self.lines: dict[str, set[tuple[str, int]]] = {}
        self.seconds: dict[str, float] = {}
        self.shared: set[tuple[str, int]] = set()
        self.current = self.shared

    def call(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self.line if frame.f_code.co_filename.startswith(self.package) else None

    def line(self, frame: FrameType, event: str, argument: Any) -> Any:
        self.current.add((frame.f_code.co_filename.removeprefix(self.root), frame.f_lineno))
        return self.line

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.current = self.lines[item.nodeid] = set()
        started = time.perf_counter()
        sys.settrace(self.call)
        yield
        self.seconds[item.nodeid] = time.perf_counter() - started

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        before = self.current
        self.current = before if fixturedef.scope == "function" else self.shared
        yield
        self.current = before

    def done(self) -> Reached:
        sys.settrace(None)
        return Reached({name: lines | self.shared for name, lines in self.lines.items()}, self.seconds)


# --- running tests ---


def passes(run: Callable[[], bool], limit: float = float("inf")) -> bool:
    """What `run` says in a fork; False where that ends otherwise, or not within `limit` seconds."""
    child = os.fork()
    if child == 0:
        os.setsid()
        status = 1
        with contextlib.suppress(BaseException):
            status = 0 if run() else 1
        os._exit(status)
    until, done, status = time.monotonic() + limit, 0, 1
    while not done and time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what the tests started, too
    if not done:
        os.waitpid(child, 0)
    return bool(done) and os.waitstatus_to_exitcode(status) == 0


def pytest_passes(words: list[str], plugins: list[Any]) -> bool:
    """Whether pytest in this process is content; it writes to the file `output`."""
    output = os.open("output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    loaded = [word for name in PLUGINS for word in ("-p", name)]
    return pytest.main([*loaded, "-p", "no:cacheprovider", "-x", *words], plugins) == 0


class Session:
    """A pytest plugin that runs no tests but forks of itself in which one function is another."""

    def __init__(self, mutants: list[Mutant], notes: Path) -> None:
        self.mutants, self.notes = mutants, notes
        self.functions: dict[tuple[str, str], list[FunctionType]] = {}

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        for thing in gc.get_objects():
            if type(thing) is FunctionType and thing.__code__.co_filename.startswith(str(Path.cwd())):
                place = (thing.__code__.co_filename, thing.__code__.co_qualname)
                self.functions.setdefault(place, []).append(thing)
        gc.freeze()
        if not passes(lambda: self._trace(session, list(items.values()))):
            return True
        reached = read_notes(self.notes)
        outcomes = []
        for mutant in self.mutants:
            outcome = self._outcome(session, mutant, [items[name] for name in reached.tests(mutant)], reached)
            outcomes.append(outcome)
            if outcome == "survived":
                print(described(mutant), file=PROGRESS, flush=True)
            self.notes.with_suffix(".outcomes").write_text(json.dumps(outcomes))
        return True

    def _trace(self, session: pytest.Session, items: list[pytest.Item]) -> bool:
        tracer, failed = Tracer(Path.cwd() / "gpt_modules"), []
        session.config.pluginmanager.register(tracer)
        for item, following in zip(items, [*items[1:], None], strict=True):
            before = session.testsfailed
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            failed += [item.nodeid] * (session.testsfailed > before)
        found = tracer.done()
        for name in failed:
            print(f"{name} fails without any change, and is left out", file=PROGRESS, flush=True)
        lines = {name: sorted(places) for name, places in found.lines.items() if name not in failed}
        self.notes.write_text(json.dumps([lines, found.seconds]))
        return bool(lines)

    def _outcome(self, session: pytest.Session, mutant: Mutant, items: list[pytest.Item], reached: Reached) -> str:
        """`killed`, `survived`, or `import` where no function's code differs."""
        source = Path(mutant.file).read_text()
        changed = list(differences(code_of(mutant.file, source), code_of(mutant.file, mutant.applied(source))))
        path = str(Path(mutant.file).resolve())
        functions = [self.functions.get((path, code.co_qualname)) for code in changed]
        if not changed or not all(functions):
            return "import"

        def run() -> bool:
            Path(mutant.file).write_text(mutant.applied(source))
            for code, found in zip(changed, functions, strict=True):
                for function in found or ():
                    function.__code__ = code
            return run_items(session, items)

        with restored(Path(mutant.file)):
            limit = PATIENCE + 5 * sum(reached.seconds[item.nodeid] for item in items)
            return "survived" if passes(run, limit) else "killed"


def run_items(session: pytest.Session, items: list[pytest.Item]) -> bool:
    """Until one fails."""
    for item, following in zip(items, [*items[1:], None], strict=False):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.testsfailed:
            return False
    return True


def code_of(file: str, source: str) -> CodeType:
    return compile(source, str(Path(file).resolve()), "exec", dont_inherit=True)


def differences(before: CodeType, after: CodeType) -> Iterator[CodeType]:
    """The outermost functions of `after` that are others than in `before`; none where more than functions differ."""
    inner = [[part for part in code.co_consts if isinstance(part, CodeType)] for code in (before, after)]
    rest = [[part for part in code.co_consts if not isinstance(part, CodeType)] for code in (before, after)]
    if before.co_code != after.co_code or repr(rest[0]) != repr(rest[1]) or before.co_names != after.co_names:
        return
    for old, new in zip(*inner, strict=True):
        if old != new:
            is_class = "__module__" in new.co_names and "__qualname__" in new.co_names
            if is_class:
                yield from differences(old, new)
            else:
                yield new


@contextlib.contextmanager
def restored(path: Path) -> Iterator[None]:
    source = path.read_text()
    try:
        yield
    finally:
        path.write_text(source)


def read_notes(notes: Path) -> Reached:
    lines, seconds = json.loads(notes.read_text())
    return Reached({name: set(map(tuple, places)) for name, places in lines.items()}, seconds)


def survivors(mutants: list[Mutant], tests: list[str]) -> list[Mutant]:
    """Those whose tests pass."""
    notes = Path("notes.json").resolve()
    passes(lambda: pytest_passes(tests, [Session(mutants, notes)]))
    if not notes.with_suffix(".outcomes").exists():
        raise SystemExit(Path("output").read_text()[-3000:] + "\nthe tests fail without any change")
    outcomes, reached = json.loads(notes.with_suffix(".outcomes").read_text()), read_notes(notes)
    return [m for m, outcome in zip(mutants, outcomes, strict=True)
            if outcome == "survived" or (outcome == "import" and _survives_import(m, reached))]  # fmt: skip


def _survives_import(mutant: Mutant, reached: Reached) -> bool:
    path, names = Path(mutant.file), reached.tests(mutant)
    with restored(path):
        for cached in path.parent.glob(f"__pycache__/{path.stem}.*"):
            cached.unlink()  # its date and size could be those of this file
        path.write_text(mutant.applied(path.read_text()))
        sys.dont_write_bytecode = True
        limit = PATIENCE + 5 * sum(reached.seconds[name] for name in names)
        alive = passes(lambda: pytest_passes(names, []), limit)
    if alive:
        print(described(mutant), file=PROGRESS, flush=True)
    return alive


# --- what is asked for ---


def tests_of(file: str) -> list[str]:
    """The file of the same name under tests/."""
    path = Path(file)
    mirrored = Path("tests", *path.parts[1:-1], f"test_{path.name}")
    return [str(mirrored)] if (ROOT / mirrored).exists() else []


def described(mutant: Mutant) -> str:
    old, new = (" ".join(text.split()) for text in (mutant.old, mutant.new))
    return f"{mutant.file}:{mutant.line}: {old[:100]} -> {new[:100] or '(nothing)'}"


def copy_tree(tree: Path) -> None:
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, tree / name)


def chosen(words: argparse.Namespace) -> list[Mutant]:
    if words.again:
        mutants = [Mutant(**found) for found in json.loads(Path(words.again).read_text())]
        return [m for m in mutants if (ROOT / m.file).read_text()[m.start : m.end] == m.old]
    paths = [
        path for name in words.files for path in (Path(name).rglob("*.py") if Path(name).is_dir() else [Path(name)])
    ]
    names = sorted(str(path) for path in paths if path.name != "__init__.py")
    mutants = []
    for name in names:
        found = Mutator(name, (ROOT / name).read_text()).mutants
        if words.sample and words.sample < len(found):
            found = sorted(random.Random(words.seed).sample(found, words.sample), key=lambda m: m.start)
        mutants += found
    return mutants


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="files or folders, from the root of the tree")
    parser.add_argument("--tests", nargs="+", help="test files; left out: those of the same names")
    parser.add_argument("--sample", type=int, help="so many mutants of a file, drawn from all of its own")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--survivors", type=Path, help="write the survivors to this file")
    parser.add_argument("--again", type=Path, help="only the survivors in this file")
    words = parser.parse_args()
    os.chdir(ROOT)
    mutants = chosen(words)
    files = list(dict.fromkeys(mutant.file for mutant in mutants))
    tests = words.tests or list(dict.fromkeys(test for file in files for test in tests_of(file)))
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copy_tree(Path(folder))
        os.chdir(folder)
        os.environ |= {"PYTHONPATH": folder, "OMP_NUM_THREADS": "1", "JSONARGPARSE_DEPRECATION_WARNINGS": "off"}
        own = {ROOT, ROOT / "tests" / "benchmarks"}
        sys.path[:] = [folder, *(path for path in sys.path if Path(path).resolve() not in own)]
        for library in LIBRARIES:
            with contextlib.suppress(ImportError):
                importlib.import_module(library)
        alive = survivors(mutants, tests)
    for file in files:
        of_file = [mutant for mutant in mutants if mutant.file == file]
        print(f"{file}: {sum(mutant not in alive for mutant in of_file)} of {len(of_file)} killed")
    print(f"\n{len(mutants) - len(alive)} of {len(mutants)} killed ({1 - len(alive) / len(mutants):.1%}). Survivors:")
    print(*map(described, alive), sep="\n")
    if words.survivors:
        words.survivors.write_text(json.dumps([asdict(mutant) for mutant in alive]))


if __name__ == "__main__":
    main()
