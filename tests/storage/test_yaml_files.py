"""YAML of people: plain values, bounded, with the line of each key."""

import os
from pathlib import Path

import pytest

from gpt_modules.errors import UserError
from gpt_modules.storage.yaml_files import dotted, parse_yaml, read_yaml

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2026-01-01", "2026-01-01"),
        ("1:30", "1:30"),
        ("on", "on"),
        ("yes", "yes"),
        ("010", "010"),
        ("0x10", "0x10"),
        ("1_000", 1000),
        ("1e5", 100000.0),
        ("1e-4", 0.0001),
        ("2.5e-4", 0.00025),
        (".5", 0.5),
        ("5.", 5.0),
        ("-1", -1),
        ("~", None),
        ("true", True),
        ("'007'", "007"),
        ("=", "="),
    ],
)
def test_scalars_mean_what_they_look_like(text, value):
    found = parse_yaml(f"key: {text}\n", "x")[0]["key"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (BOMB, "x:5: found more than 20,000 values once its aliases are written out"),
        ("a: " + "[" * 400 + "]" * 400, "x:1: found more than 50 levels"),
        ("a: " + "[" * 20000, "x: found more than 50 levels, expected a recipe"),
        ("a: &a [*a]\n", "x:1: an alias stands inside what it names"),
        ("a: 1\n---\nb: 2\n", "x:2: but found another document"),
        ("a: 1\nb: c\0d\n", "x:2: found character 0, expected text"),
        ("a: 1\n2: 3\n", "x:2: found key '2', expected text: put it in quotation marks"),
        ("[1, 2]: 3\n", "x:1: found key a list or mapping, expected text: put it in quotation marks"),
        ("a: 1\nb: {c: 1,\n c: 2}\n", "x:3: key 'c' stands twice, on lines 2 and 3"),
        ("a: 1e400\n", "x:1: a: found 1e400, expected a finite number"),
        ("a:\n  - 1\n  - .inf\n", "x:3: a.1: found .inf, expected a finite number"),
        ("a: " + "9" * 5000, "x:1: a: found " + "9" * 40 + ", expected a finite number"),
        ("a: !!int foo\n", "x:1: a: found 'foo', expected a value of its tag, int"),
        ("a: !!float '1:30'\n", "x:1: a: found '1:30', expected a value of its tag, float"),
        ('a: "\\ud800"\n', "x:1: a: found half of a surrogate pair, expected text"),
    ],
)
def test_what_grows_misleads_or_cannot_be_is_refused(text, line):
    with pytest.raises(UserError) as refused:
        parse_yaml(text, "x")
    assert str(refused.value) == line


@pytest.mark.parametrize("tag", ["python/object/apply:os.system", "set", "binary", "timestamp", "omap", "pairs"])
def test_only_plain_values_are_made(tag):
    with pytest.raises(UserError, match=r"x:1: could not determine a constructor for the tag '.*', expected plain"):
        parse_yaml(f"a: !!{tag} {{}}\n", "x")


def test_a_merge_is_written_out_and_every_key_has_its_line():
    value, lines = parse_yaml("x: &x {a: 1}\ny:\n  <<: *x\n  b:\n    - 2\n", "x")
    assert value == {"x": {"a": 1}, "y": {"a": 1, "b": [2]}}
    assert (lines[("y", "b")], lines[("y", "b", 0)]) == (4, 5)
    assert dotted(("y", "b", 0, "c")) == "y.b.0.c"


def test_only_regular_files_of_a_bearable_size_in_utf8_are_read(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_text("a: 1\n" * 50_000)
    (tmp_path / "latin").write_bytes(b"a: 1\nb: \xff\n")
    (tmp_path / "bom").write_bytes(b"\xef\xbb\xbfa: 1\r\n")
    told = {}
    for path in (tmp_path / "fifo", tmp_path / "large", tmp_path / "latin", tmp_path, tmp_path / "none"):
        with pytest.raises(UserError) as refused:
            read_yaml(path)
        told[path.name] = str(refused.value).removeprefix(str(path))
    assert told == {
        "fifo": ": found no file, expected a YAML file",
        "large": ": found more than 200,000 bytes, expected a YAML file",
        "latin": ":2: found bytes that are not UTF-8, expected a YAML file",
        tmp_path.name: ": found no file, expected a YAML file",
        "none": ": no such file, expected a YAML file",
    }
    with pytest.raises(UserError, match="/dev/zero: found no file"):
        read_yaml(Path("/dev/zero"))
    assert read_yaml(tmp_path / "bom")[0] == {"a": 1}
