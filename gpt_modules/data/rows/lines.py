"""A text file as text, the same for every format: UTF-8, a byte order mark at its start dropped, lines ended by a line
feed or by carriage return and line feed. All other characters are text, also those that Python or Unicode call the end
of a line (a lone carriage return, U+0085, U+2028).
"""

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gpt_modules.errors import UserError

BLOCK = 1 << 20  # bytes read at a time


def text_lines(path: Path) -> Iterator[str]:
    """The lines of a file, without what ends them; the first is physical line 1.

    Raises:
        UserError: Bytes that are not UTF-8, with their line; an empty file, or one of blank lines only.
    """
    blank = True
    with open_bytes(path) as file:
        for number, data in enumerate(file, start=1):
            line = _decode(data, path, number)
            line = line.removesuffix("\r\n") if line.endswith("\r\n") else line.removesuffix("\n")
            if number == 1:
                line = line.removeprefix("\ufeff")
            blank = blank and not line.strip()
            yield line
    if blank:
        raise nothing_in(path)


def text_blocks(path: Path) -> Iterator[str]:
    """The text of a file block by block, every line ended by a line feed.

    Raises:
        UserError: As `text_lines`.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    line, blank, held = 1, True, ""
    with open_bytes(path) as file:
        while True:
            data = file.read(BLOCK)
            try:
                text = held + decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                raise _not_utf8(path, line, error) from error
            held = "\r" if text.endswith("\r") and data else ""  # its line feed may open the next block
            text = text.removesuffix(held).replace("\r\n", "\n")
            line += text.count("\n")
            blank = blank and not text.strip()
            if text:
                yield text
            if not data:
                break
    if blank:
        raise nothing_in(path)


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """The file, open to read.

    Raises:
        UserError: It cannot be opened or read.
    """
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise UserError(f"{path}: found a file that cannot be read ({error.strerror}), expected rows") from error


def _decode(data: bytes, path: Path, line: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, line, error) from error


def _not_utf8(path: Path, line: int, error: UnicodeDecodeError) -> UserError:
    line += error.object[: error.start].count(b"\n")
    if error.end == len(error.object) and error.reason == "unexpected end of data":
        return UserError(f"{path}:{line}: row: found the file cut off inside a character, expected UTF-8 text")
    found = f"bytes that are not UTF-8 (0x{error.object[error.start]:02x})"
    return UserError(f"{path}:{line}: row: found {found}, expected UTF-8 text")


def nothing_in(path: Path) -> UserError:
    """The line for a file that has no text."""
    found = "only blank lines" if path.stat().st_size else "an empty file"
    return UserError(f"{path}: found {found}, expected rows")
