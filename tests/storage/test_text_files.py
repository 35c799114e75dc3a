"""A text file is read whole and in UTF-8, or refused in a line, whatever stands under its name."""

import os

import pytest

from gpt_modules.errors import UserError
from gpt_modules.storage.text_files import read_text


def test_what_is_no_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    found = {"pipe": "found no file", ".": "found no file", "broken": "no such file", "none": "no such file"}
    for name, message in found.items():
        with pytest.raises(UserError, match=f"{message}, expected a document"):
            read_text(tmp_path / name, "a document")
    with pytest.raises(UserError, match="found no file"):
        read_text(tmp_path.joinpath("/dev/zero"), "a document")
    with pytest.raises(UserError, match="cannot be read"):
        read_text(tmp_path / ("x" * 5000), "a document")
    with pytest.raises(UserError, match="cannot be read"):
        read_text(tmp_path / "a\0b", "a document")


def test_text_is_as_it_is_written_but_for_its_mark(tmp_path):
    (tmp_path / "text").write_bytes("\ufeffa\r\n\u2028\ufeff".encode())
    assert read_text(tmp_path / "text", "text", 12) == "a\r\n\u2028\ufeff"


@pytest.mark.parametrize(("data", "line"), [
    (b"x" * 11, ": found more than 10 bytes, expected text"),
    (b"a\nb\n\xff\n", ":3: found bytes that are not UTF-8, expected text"),
])  # fmt: skip
def test_what_is_no_text_is_one_line(tmp_path, data, line):
    (tmp_path / "text").write_bytes(data)
    with pytest.raises(UserError) as refused:
        read_text(tmp_path / "text", "text", 10)
    assert str(refused.value) == f"{tmp_path / 'text'}{line}"
