"""A document has the types that its dataclass says, or one line says where it has not."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pytest

from gpt_modules.errors import UserError, expect
from gpt_modules.storage.documents import (
    Count,
    FileName,
    Foreign,
    Positive,
    Rule,
    Sha256,
    document_of,
    read_document,
    typed,
)


class Pair(NamedTuple):
    first: int
    second: float = 0.5


@dataclass(frozen=True)
class Inner:
    name: str
    rate: float = 1.0

    def __post_init__(self) -> None:
        expect(self.rate > 0, "rate", self.rate, "above 0")


@dataclass(frozen=True)
class Theirs(Foreign):
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Outer:
    inner: Inner
    many: list[Inner] = field(default_factory=list)
    named: dict[str, int | None] = field(default_factory=dict)
    words: str | tuple[str, ...] = ()
    levels: tuple[int, int] | None = None
    pairs: list[Pair] = field(default_factory=list)
    theirs: Theirs = Theirs()
    path: Path | None = None
    on: bool = False
    free: dict[str, Any] = field(default_factory=dict)
    even: Annotated[int, Rule(lambda number: number % 2 == 0, "an even number")] = 0


def test_values_become_their_types(tmp_path):
    document = {
        "inner": {"name": "x", "rate": 2},
        "many": [{"name": "y"}],
        "named": {"a": 1, "b": None},
        "words": ["u", "v"],
        "levels": [1, 2],
        "pairs": [{"first": 1}, {"first": 2, "second": 3}],
        "theirs": {"kind": "b", "other": [1]},
        "path": "a/b",
        "on": True,
        "free": {"x": [None, {"y": 1.5}]},
        "even": 4,
    }
    (tmp_path / "a.json").write_text(json.dumps(document))
    found = read_document(tmp_path / "a.json", Outer, "an example")
    assert found == Outer(
        Inner("x", 2.0), [Inner("y")], {"a": 1, "b": None}, ("u", "v"), (1, 2), [Pair(1), Pair(2, 3.0)], Theirs("b"),
        Path("a/b"), True, {"x": [None, {"y": 1.5}]}, 4,
    )  # fmt: skip
    assert type(found.inner.rate) is float
    assert document_of(Path("b"), Outer, {"inner": {"name": "x"}, "words": "one"}).words == "one"


WRONG = {
    "found [1], expected a mapping of keys": [1],
    "inner: missing, expected a mapping of keys": {},
    "inner.name: missing, expected text": {"inner": {}},
    "inner.name: found 5, expected text in quotation marks": {"inner": {"name": 5}},
    "inner.name: found None, expected text": {"inner": {"name": None}},
    "inner.rate: found True, expected a number": {"inner": {"name": "x", "rate": True}},
    "inner.rate: found 'x', expected a number": {"inner": {"name": "x", "rate": "x"}},
    "inner.rate: found nan, expected a number that is finite": {"inner": {"name": "x", "rate": float("nan")}},
    "inner.rate: found -1.0, expected above 0": {"inner": {"name": "x", "rate": -1}},
    "inner.nam: unknown key, expected one of name, rate": {"inner": {"name": "x", "nam": 1}},
    "1: unknown key, expected one of inner, many": {1: 2},
    "many: found {}, expected a list (a mapping of keys each)": {"many": {}},
    "many[2].name: missing, expected text": {"many": [{"name": "x"}, {}]},
    "many[1]: found 'x', expected a mapping of keys": {"many": ["x"]},
    "named.a: found 1.5, expected a whole number or nothing": {"named": {"a": 1.5}},
    "named.b: found False, expected a whole number or nothing": {"named": {"b": False}},
    "named.3: found this key, expected text in quotation marks": {"named": {3: 1}},
    "named.a: found 36893488147419103232, expected a whole number of at most 64 bits": {"named": {"a": 2**65}},
    "words[2]: found True, expected text in quotation marks": {"words": ["a", True]},
    "words: found {}, expected text or a list (text each)": {"words": {}},
    "levels: found 3 values, expected 2": {"levels": [1, 2, 3]},
    "levels[1]: found 'a', expected a whole number": {"levels": ["a", 2]},
    "pairs[1].third: unknown key, expected one of first, second": {"pairs": [{"first": 1, "third": 1}]},
    "theirs.kind: found 'c', expected one of a, b": {"theirs": {"kind": "c"}},
    "theirs.kind: found [], expected one of a, b": {"theirs": {"kind": []}},
    "path: found 'a\\x00', expected a path without NUL characters": {"path": "a\0"},
    "on: found 1, expected true or false": {"on": 1},
    "even: found 3, expected an even number": {"even": 3},
    "even: found 'x', expected an even number": {"even": "x"},
}


@pytest.mark.parametrize("message", WRONG)
def test_what_does_not_fit_is_one_line_with_its_key(message):
    value = WRONG[message]
    if isinstance(value, dict) and message.partition(":")[0].partition(".")[0] != "inner":
        value = {"inner": {"name": "x"}, **value}
    with pytest.raises(UserError) as caught:
        document_of(Path("file.json"), Outer, value)
    assert str(caught.value).startswith(f"file.json: {message}")
    assert "\n" not in str(caught.value)


def test_a_message_stays_a_line_whatever_was_found():
    for value in ({"inner": {"name": ["x" * 10_000]}}, {"k\n" * 500: 1}, {"inner": {"name": "x", "rate": 10**5000}}):
        with pytest.raises(UserError) as caught:
            document_of(Path("file.json"), Outer, value)
        assert len(str(caught.value)) < 250
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Count, [0, 7], [-1, 1.0, True, None, "1"]),
        (Positive, [1], [0]),
        (Sha256, ["0" * 64], ["0" * 63, "A" * 64, "0" * 64 + "\n", 0]),
        (FileName, ["a.bin", ".x"], ["", "..", ".", "a/b", "/a", "a\0", "..\\b", None]),
        (Literal[1], [1], [True, 1.0, "1", 2]),
        (int | float, [1, 1.5], [True, "1"]),
        (dict[str, list[int]] | list[int], [{"a": [1]}, [1]], [{"a": 1}, ["a"]]),
    ],
)
def test_the_types_that_documents_share(kind, good, bad):
    for value in good:
        assert typed(kind, value, "k") == value
        assert type(typed(kind, value, "k")) is type(value)
    for value in bad:
        with pytest.raises(UserError, match="k"):
            typed(kind, value, "k")
