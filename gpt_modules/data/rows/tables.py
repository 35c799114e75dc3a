"""Tables of text: comma-separated (.csv, RFC 4180) and, with tabs in place of the commas, tab-separated (.tsv).

The first line names the columns. A cell is text as it stands in the file, whatever it looks like: "007", "NA", "". A
cell in double quotes may hold separators, line breaks and, doubled, quotes. A quote inside any other cell is text: RFC
4180 has none there, but 5" is common, and it opens nothing. Blank lines are skipped.
"""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

from gpt_modules.data.rows.lines import text_lines
from gpt_modules.errors import UserError

SEPARATORS = {".csv": ",", ".tsv": "\t"}
_NAMES = {",": "a comma", "\t": "a tab", ";": "a semicolon", "|": "a bar"}


def table_rows(path: Path, separator: str) -> Iterator[tuple[int, dict[str, str]]]:
    """(physical line where the row begins, cell by column).

    Raises:
        UserError: The header names no column, one twice, or is parted by something else; a row has more or fewer cells
            than the header; a quote is not closed, or stands where none can.
    """
    csv.field_size_limit(sys.maxsize)  # a cell may be a book
    records = _records(path, separator)
    line, header = next(records)
    _check_header(f"{path}:{line}", header, separator)
    for line, cells in records:
        if len(cells) != len(header):
            named = ", ".join(header) if len(header) < 9 else f"{', '.join(header[:8])}, ..."
            raise UserError(f"{path}:{line}: row: found {len(cells)} fields, expected {len(header)} ({named:.200})")
        yield line, dict(zip(header, cells, strict=True))


def _records(path: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Lines that are not blank, in cells."""
    record: list[str] = []
    reader = csv.reader(_noted(path, record), delimiter=separator, strict=True)
    while True:
        record.clear()
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{path}:{line}: row: {_explained(str(error), separator)}") from error
        if cells is None:
            return
        if cells:
            _check_quotes(f"{path}:{line}", record, cells, separator)
            yield line, cells


def _noted(path: Path, record: list[str]) -> Iterator[str]:
    """The lines for the reader, each noted in `record` too."""
    for number, text in enumerate(text_lines(path), start=1):
        line = _checked(path, number, text)
        record.append(line)
        yield line


def _check_quotes(where: str, record: list[str], cells: list[str], separator: str) -> None:
    """A quote after spaces quotes nothing: its cell would keep it, and end at the next separator."""
    suspects = [number for number, cell in enumerate(cells) if cell[:1] == " " and cell.lstrip(" ")[:1] == '"']
    if not suspects:
        return
    try:
        (trimmed,) = csv.reader(record, delimiter=separator, strict=True, skipinitialspace=True)
    except (csv.Error, ValueError):
        trimmed = []
    if len(trimmed) != len(cells) or any(trimmed[number] != cells[number] for number in suspects):
        raise UserError(f'{where}: row: found a space before a quote ("), expected the quote right after '
                        f"{_NAMES[separator]}, or the cell in quotes")  # fmt: skip


def _checked(path: Path, number: int, line: str) -> str:
    if "\0" in line:
        raise UserError(f"{path}:{number}: row: found a NUL byte, expected text (UTF-8; not UTF-16)")
    return line + "\n"


def _check_header(where: str, header: list[str], separator: str) -> None:
    other = next((mark for mark in _NAMES if mark in header[0]), None) if len(header) == 1 else None
    if other is not None:
        right = next((f", or the ending {ending}" for ending, mark in SEPARATORS.items() if mark == other), "")
        raise UserError(f"{where}: header: found {_NAMES[other]} between names, expected {_NAMES[separator]}{right}")
    for number, name in enumerate(header, start=1):
        if not name.strip():
            raise UserError(f"{where}: header: found no name for column {number}, expected names")
        if name in header[: number - 1]:
            raise UserError(f"{where}: header: found the column {name[:40]!r} twice, expected different names")


def _explained(reason: str, separator: str) -> str:
    if "unexpected end of data" in reason:
        return 'found a quote (") that nothing closes, expected another one'
    if "new-line character" in reason:
        return "found a carriage return inside a line, expected line feeds, or the cell in quotes"
    return f'found text after a closing quote ("), expected {_NAMES[separator]}, or the quotes of a cell doubled'
