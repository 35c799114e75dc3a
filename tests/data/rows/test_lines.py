"""Text files as text: one rule for the ends of lines, whatever the format."""

import pytest

from gpt_modules.data.rows import lines
from gpt_modules.data.rows.lines import text_blocks, text_lines
from gpt_modules.data.rows.sources import load_rows
from gpt_modules.errors import UserError

ODD = "a\rb\x0bc\x0cd\x1ce\x85f\u2028g\u2029h"  # what str.splitlines or universal newlines take for ends of lines


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1 << 20])
def test_lines_and_blocks_end_at_line_feeds_only(tmp_path, monkeypatch, size):
    monkeypatch.setattr(lines, "BLOCK", size)
    path = tmp_path / "a.txt"
    path.write_bytes(f"\ufeff{ODD}\r\n\r\r\n\ufeffé你🙂\n\nend\r".encode())
    assert list(text_lines(path)) == [ODD, "\r", "\ufeffé你🙂", "", "end\r"]
    assert "".join(text_blocks(path)) == f"{ODD}\n\r\n\ufeffé你🙂\n\nend\r"


def test_a_prompt_a_line_and_a_document_a_file(tmp_path):
    (tmp_path / "a.txt").write_bytes(f"\ufeff{ODD}\r\n \r\ntwo".encode())
    source = str(tmp_path / "a.txt")
    assert load_rows(source, "train", "ppo") == [{"prompt": ODD}, {"prompt": "two"}]
    assert load_rows(source, "train", "pretraining") == [{"text": f"{ODD}\n \ntwo"}]


@pytest.mark.parametrize("read", [text_lines, text_blocks])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"ab\nc\xffd", ":2: row: found bytes that are not UTF-8 (0xff), expected UTF-8 text"),
        (b"a\n\n\xed\xa0\x80", ":3: row: found bytes that are not UTF-8 (0xed), expected UTF-8 text"),
        (b"a\n\nb\xc3", ":3: row: found the file cut off inside a character, expected UTF-8 text"),
        ("ä".encode("utf-16"), ":1: row: found bytes that are not UTF-8 (0xff), expected UTF-8 text"),
        (b" \n\n", ": found only blank lines, expected rows"),
        (b"\xef\xbb\xbf\r\n", ": found only blank lines, expected rows"),
        (b"", ": found an empty file, expected rows"),
    ],
)
@pytest.mark.parametrize("size", [1, 1 << 20])
def test_a_bad_file_is_named_with_its_line(tmp_path, monkeypatch, read, data, message, size):
    monkeypatch.setattr(lines, "BLOCK", size)
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        list(read(path))
    assert str(caught.value) == f"{path}{message}"


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError) as caught:
        list(text_lines(tmp_path))
    assert str(caught.value) == f"{tmp_path}: found a file that cannot be read (Is a directory), expected rows"
