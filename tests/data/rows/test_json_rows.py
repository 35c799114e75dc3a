"""JSON that two readers would read in two ways is refused, with its physical line."""

import json

import pytest

from gpt_modules.data.rows.json_rows import json_lines, json_list, parse_json
from gpt_modules.errors import UserError

DEEP = "[" * 99 + "]" * 99

REFUSED = {
    "a key twice": ('{"text": "a", "text": "b"}', "the key 'text' twice"),
    "a key twice, inside": ('{"text": {"a": 1, "b": [{"c": 1, "c": 2}]}}', "the key 'c' twice"),
    "two objects": ('{"text": "a"} {"text": "b"}', "more after the first value, at column 15"),
    "a comma behind": ('{"text": "a"},', "more after the first value, at column 14"),
    "NaN": ('{"text": "a", "n": NaN}', "NaN, which JSON has not"),
    "infinity": ('{"n": -Infinity}', "-Infinity, which JSON has not"),
    "beyond a float": ('{"n": 1e400}', "the number 1e400, too large for a float"),
    "many digits": ('{"n": ' + "9" * 400 + "}", f"the number {'9' * 20}..., too large for a float"),
    "too many digits for Python": ('{"n": ' + "9" * 5000 + "}", f"the number {'9' * 20}..., too large for a float"),
    "half a pair": ('{"text": "a", "other": ["\\ud800x"]}', "half of a surrogate pair"),
    "half a pair as a key": ('{"\\udc00": 1}', "half of a surrogate pair"),
    "too deep": (f'{{"n": [{DEEP}]}}', "more than 100 objects and lists inside one another"),
    "much too deep": ('{"n": ' + "[" * 50_000, "more than 100 objects and lists inside one another"),
    "cut off": ('{"text": "a', "Unterminated string starting at column 10"),
    "a raw tab": ('{"text": "a\tb"}', "Invalid control character at column 12"),
    "a NUL": ('{"text": "a\0b"}', "Invalid control character at column 12"),
    "single quotes": ("{'text': 'a'}", "Expecting property name enclosed in double quotes at column 2"),
    "a leading zero": ('{"n": 007}', "Expecting ',' delimiter at column 8"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(tmp_path, name):
    text, what = REFUSED[name]
    for ending, read in ((".jsonl", json_lines), (".json", json_lines)):
        path = tmp_path / f"a{ending}"
        path.write_text('{"text": "x"}\n\n' + text + "\n")
        with pytest.raises(UserError) as caught:
            list(read(path))
        assert str(caught.value) == f"{path}:3: row: found broken JSON ({what}), expected one object"


@pytest.mark.parametrize("name", [name for name in REFUSED if name not in ("two objects", "a comma behind", "cut off")])
def test_the_same_in_a_list(tmp_path, name):
    text, what = REFUSED[name]
    path = tmp_path / "a.json"
    path.write_text('[\n{"text":\n"x"\n}\n,\n' + text + "\n]")
    with pytest.raises(UserError) as caught:
        list(json_list(path))
    assert str(caught.value).startswith(f"{path}:6: row: found broken JSON ({what.split(' at column')[0]}")


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("[1,\n2\n3]", 3, "a list whose rows no comma parts, or that does not end"),
        ("[1,\n2,\n]", 2, "a list whose rows no comma parts, or that does not end"),
        ("[1,\n2", 2, "a list whose rows no comma parts, or that does not end"),
        ("[1]\n\n[2]", 3, "more after the list"),
        ("[1,\n", 2, "Expecting value at column 1"),
        ("[", 1, "Expecting value at column 2"),
    ],
)
def test_a_list_that_is_none(tmp_path, text, line, what):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError) as caught:
        list(json_list(tmp_path / "a.json"))
    assert str(caught.value) == f"{tmp_path / 'a.json'}:{line}: row: found broken JSON ({what}), expected one object"


def test_lists_and_lines_hold_the_same_records_at_their_lines(tmp_path):
    records = [{"text": f"a\n{i}", "n": [i, {"x": None}]} for i in range(5)]
    for text, lines in (
        (json.dumps(records), [1] * 5),
        (json.dumps(records, indent=1), [2 + 9 * i for i in range(5)]),
        (" \n" + "\n\n".join(map(json.dumps, records)), [2, 4, 6, 8, 10]),
    ):
        (tmp_path / "a.json").write_text(text)
        assert list(json_list(tmp_path / "a.json")) == list(zip(lines, records, strict=True))
    assert list(json_lines(tmp_path / "a.json")) == list(zip(lines, records, strict=True))
    (tmp_path / "a.json").write_text(" [ ] ")
    assert list(json_list(tmp_path / "a.json")) == []


@pytest.mark.parametrize(
    "written", ["5", "2.5", "2.50", "1e5", "1E+5", "-0", "-0.0", "0.1000", "123456789012345678901"]
)
def test_a_number_keeps_its_spelling_and_is_a_number(written):
    value = parse_json(f'{{"n": {written}}}', "a:1")["n"]
    assert str(value) == f"{value}" == written
    assert value == json.loads(written)
    assert isinstance(value, int | float)


def test_pairs_of_surrogates_are_letters():
    assert parse_json('"\\ud83d\\ude42 \\u00e9"', "a:1") == "🙂 é"
