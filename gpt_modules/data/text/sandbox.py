"""Jinja templates that others wrote, run without harm: no files, no code, no randomness, and within bounds.

Jinja's own sandbox keeps a template from Python's insides and from changing what it is given. It does not keep one from
looping for hours or from filling the memory, so here every turn of a loop and every call is counted against a time of
the processor, and what an operation could make is estimated before it is done.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from datetime import datetime
from functools import wraps
from math import prod
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

SECONDS = 2.0  # of the processor; a conversation takes some ten thousandths
LARGEST = 1 << 22  # letters of a text, or what is as large
ITEM = 64  # letters that an item of a list counts as
MOST_WORK = 1 << 28  # letters that one operation may make, or read
_WIDE = re.compile(r"\d{5}|\*")  # in a format: a field that is wider than any text
_WITHOUT = {"random", "lipsum", "pprint", "wordwrap", "urlize", "striptags"}  # the last three: quadratic in a text
_NO_ATTRIBUTES = {"encode", "to_bytes", "from_bytes", "striptags"}  # nothing here looks at bytes


def compile_template(source: str) -> Template:
    """The template; it is rendered by `render`.

    Raises:
        Exception: whatever Jinja and Python have to say of a text that is none.
    """
    environment = _Environment()
    tree = _Counted().visit(environment.parse(source))
    return Template.from_code(environment, environment.compile(tree), environment.make_globals(None))


def render(template: Template, **values: Any) -> str:
    """What it says of these values.

    Raises:
        Exception: what the template raises, or `SecurityError` where it goes beyond its bounds.
    """
    environment = template.environment
    assert isinstance(environment, _Environment)
    environment.begin()
    blocks, length = [], 0
    for block in template.generate(**values):
        length += len(block)
        blocks.append(block)
        environment.tick()
        _expect(length <= LARGEST, f"writes more than {LARGEST:,} letters")
    return "".join(blocks)


def constants(source: str) -> set[str]:
    """The texts that a template looks for, or writes, in its expressions."""
    found = _Environment().parse(source).find_all(nodes.Const)
    return {node.value for node in found if isinstance(node.value, str)}


def sought(source: str) -> set[str]:
    """The texts that a template asks for in what is said: by `in`, or by a method of a text."""
    tree, found = _Environment().parse(source), set()
    for test in tree.find_all(nodes.Compare):
        found |= {test.expr} if any(operand.op in ("in", "notin") for operand in test.ops) else set()
    for call in tree.find_all(nodes.Call):
        asks = isinstance(call.node, nodes.Getattr) and call.node.attr in ("split", "startswith", "endswith")
        found |= set(call.args) if asks else set()
    return {node.value for node in found if isinstance(node, nodes.Const) and isinstance(node.value, str)}


class _Generation(Extension):
    """`{% generation %}` around what an assistant says changes nothing: what is learned follows from the prompts."""

    tags = {"generation"}  # noqa: RUF012, as in Jinja

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


class _Counted(NodeTransformer):
    """Each turn of a loop, each call of a macro and each joining of texts is a call that is counted."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._counting(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._counting(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._counting(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("joined", node.nodes).set_lineno(node.lineno)

    def _counting(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("tick", []), lineno=node.lineno))
        counted: nodes.Node = node
        return counted


def _call(method: str, arguments: list[nodes.Expr]) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(method), arguments, [], None, None)


class _Environment(ImmutableSandboxedEnvironment):
    """As `transformers` gives it to chat templates, within bounds."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # or constants would be worked out before anything counts
            finalize=_finite,
            extensions=[_Generation, loopcontrols],
        )
        self._clock = threading.local()
        self.filters = {name: self._guarded(name, of) for name, of in self.filters.items() if name not in _WITHOUT}
        self.filters["tojson"] = self._guarded("tojson", _tojson)
        for name in _WITHOUT & set(self.globals):
            del self.globals[name]
        self.globals |= {"raise_exception": _raise, "strftime_now": _strftime_now}

    def begin(self) -> None:
        """A rendering of this thread begins."""
        self._clock.end = time.thread_time() + SECONDS

    def tick(self) -> str:
        """One step of it."""
        _expect(time.thread_time() < self._clock.end, f"is not done after {SECONDS:g} seconds")
        return ""

    def getitem(self, obj: Any, argument: Any) -> Any:
        """A part of something; filters ask here for one of each item."""
        self.tick()
        return super().getitem(obj, argument)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may have it."""
        return attr not in _NO_ATTRIBUTES and super().is_safe_attribute(obj, attr, value)

    @staticmethod
    def joined(*parts: Any) -> str:
        """The texts of all parts, `~`."""
        _expect(sum(map(size_of, parts)) <= LARGEST, "makes too large a text")
        return "".join(map(str, parts))

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """What a block or a macro has written."""
        texts = list(parts)
        _expect(sum(map(len, texts)) <= LARGEST, "makes too large a text")
        return "".join(texts)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """A call, if what it is given is small enough."""
        __self.tick()
        if not isinstance(__obj, Macro):
            _expect_small(getattr(__obj, "__self__", None), *args, *kwargs.values())
        return _finite(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """A sum, product, power, or format, if what it makes is small enough."""
        self.tick()
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "**":
            _expect(abs(left) < 1 << 16 and abs(right) < 1 << 5, "makes too large a number")
        elif operator == "%" and isinstance(left, str):
            _expect(not _WIDE.search(left), "formats too wide a text")
        if not numbers or operator == "*":
            _expect_small(left, right)
        return _finite(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format`, if its fields are no wider than a text."""
        text = getattr(value, "__self__", None)
        if isinstance(text, str) and getattr(value, "__name__", "") in ("format", "format_map"):
            _expect(not _WIDE.search(text) and "{:{" not in text, "formats too wide a text")
        return super().wrap_str_format(value)

    def _guarded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that looks at what it is given, and at what it makes."""
        own = 1 if hasattr(function, "jinja_pass_arg") else 0

        @wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            self.tick()
            given = args[own:]
            if name == "format":
                _expect(not _WIDE.search(str(given[0])), "formats too wide a text")
            if name == "sum":  # lists would be copied again with each that is added
                start = given[2] if len(given) > 2 else kwargs.get("start", 0)
                _expect(isinstance(start, int | float), "makes too large a sum, of what are no numbers")
            _expect_small(*given, *kwargs.values())
            made = function(*args, **kwargs)
            return self._ticking(made) if isinstance(made, Generator) else _finite(made)

        return guarded

    def _ticking(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.tick()
            yield item


def size_of(value: Any) -> int:
    """What a value takes, written out or repeated: letters of a text, the amount of a whole number, `ITEM` for each
    thing that a list or an object holds, and what it is. Of what holds more than `LARGEST`, it is not counted further.
    """
    total, stack = 0, [value]
    while stack and total <= LARGEST:
        found = stack.pop()
        total += 1
        if isinstance(found, str):
            total += len(found)
        elif isinstance(found, bool | float):
            pass
        elif isinstance(found, int):
            total += abs(found)
        elif isinstance(found, range):
            total += ITEM * len(found)
        elif isinstance(found, Mapping | list | tuple | set | frozenset):
            total += ITEM * len(found)
            if total <= LARGEST:
                stack += [*found, *found.values()] if isinstance(found, Mapping) else found
        elif isinstance(found, Iterator):
            total += ITEM
    return total


def _finite(value: Any) -> Any:
    """The value; one that is small itself but not when it is written is refused, and bytes, which nothing counts."""
    _expect(not isinstance(value, bytes | bytearray | memoryview), "makes bytes, too large for all that is known")
    if isinstance(value, str | Mapping | list | tuple | set | frozenset):
        _expect(size_of(value) <= LARGEST, "makes too large a value")
    return value


def _expect_small(*values: Any) -> None:
    sizes = [size_of(value) for value in values]
    small = max(sizes, default=0) <= LARGEST and prod(1 + size for size in sizes) <= MOST_WORK
    _expect(small, "makes too large a value")


def _expect(fits: bool, what: str) -> None:
    if not fits:
        raise SecurityError(what)


def _raise(message: object) -> None:
    raise TemplateError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
