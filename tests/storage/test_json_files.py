"""JSON is what its grammar says, once and finite, or one line that names the file."""

import pytest

from gpt_modules.errors import UserError
from gpt_modules.storage.json_files import read_json, shown


def test_what_json_says_is_what_is_read(tmp_path):
    (tmp_path / "a.json").write_bytes(
        b'\xef\xbb\xbf{"a": [1, 2.5, true, null, "\\u00e9\\ud83d\\ude00"], "b": {"a": {}}}'
    )
    assert read_json(tmp_path / "a.json", "a document") == {"a": [1, 2.5, True, None, "é😀"], "b": {"a": {}}}


BROKEN = {
    b"": r"a\.json:1: found broken JSON \(Expecting value\), expected a document",
    b'{\n "a": 1,\n}': r"a\.json:\d: found broken JSON",
    b'{"a": 1, "b": 2, "a": 1}': r"a\.json: found broken JSON \(the key 'a' twice\), expected a document",
    b'[{"x": {"a": 1, "a": 2}}]': r"the key 'a' twice",
    b"[NaN]": "NaN, which JSON has not",
    b"[-Infinity]": "-Infinity, which JSON has not",
    b"[1e400]": "the number 1e400, too large for a float",
    b"[" * 100_000: "more than 100 objects and lists inside one another",
    b"[" + b"9" * 5_000 + b"]": "the number 99999999999999999999..., too large for a float",
    b'["\\ud800"]': "half of a surrogate pair",
    b'{"a":\n"\xff"}': r"a\.json:2: found bytes that are not UTF-8, expected a document",
    b"1" * 200: "found more than 100 bytes, expected a document",
}


@pytest.mark.parametrize("data", BROKEN, ids=lambda data: data[:24].decode(errors="replace"))
def test_what_is_no_document_is_one_line(tmp_path, data):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(UserError, match=BROKEN[data]) as caught:
        read_json(tmp_path / "a.json", "a document", 100 if data == b"1" * 200 else 1_000_000)
    assert str(caught.value).startswith(str(tmp_path / "a.json"))
    assert "\n" not in str(caught.value)


def test_a_value_in_a_message_fits_the_line():
    assert shown("x") == "'x'"
    assert len(shown("x" * 10_000)) == 60
    assert shown(10**6000) == "a huge number"
