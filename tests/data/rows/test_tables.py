"""Tables: every row has the header's cells, as they stand in the file, or is named by its physical line."""

import csv
import random

import pytest

from gpt_modules.data.rows.sources import load_rows
from gpt_modules.data.rows.tables import table_rows
from gpt_modules.errors import UserError


def read(tmp_path, text, separator=","):
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return list(table_rows(path, separator))


@pytest.mark.parametrize("separator", [",", "\t"])
def test_cells_are_the_files_own_and_lines_are_physical(tmp_path, separator):
    text = (
        '\ufefftext,label,comment\r\n\r\n007,NA,\r\n"two\r\nlines, ""quoted""",null,nan\r\n\r\n 1.50 ,1e5,5" disk\r\n'
        "\u2028\x0b,x\x85y,\xa0"
    ).replace(",", separator)
    lines = f'two\nlines{separator} "quoted"'
    assert read(tmp_path, text, separator) == [
        (3, {"text": "007", "label": "NA", "comment": ""}),
        (4, {"text": lines, "label": "null", "comment": "nan"}),
        (7, {"text": " 1.50 ", "label": "1e5", "comment": '5" disk'}),
        (8, {"text": "\u2028\x0b", "label": "x\x85y", "comment": "\xa0"}),
    ]


def test_whatever_is_written_is_read(tmp_path):
    rng, letters = random.Random(0), ["a", "é", ",", ";", '"', "\n", " ", "\t", "0", "\u2028"]
    rows = [[f"x{i}", *("".join(rng.choices(letters, k=rng.randint(0, 8))) for _ in range(2))] for i in range(300)]
    with (tmp_path / "b.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["a", "b", "c"], *rows])
    assert [list(cells.values()) for _, cells in table_rows(tmp_path / "b.csv", ",")] == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,c\n1,2,3,4\n", ":2: row: found 4 fields, expected 3 (a, b, c)"),
        ("a,b,c\n1,2,3\n1,2\n", ":3: row: found 2 fields, expected 3 (a, b, c)"),
        ('a,b\n"1\n\n2",3\n4\n', ":5: row: found 1 fields, expected 2 (a, b)"),
        ('a,b\n"1,2\n3,4\n', ':2: row: found a quote (") that nothing closes, expected another one'),
        (
            'a,b\n\n"1"2,3\n',
            ':3: row: found text after a closing quote ("), expected a comma, or the quotes of a cell doubled',
        ),
        ("a,b\n1\r2,3\n", ":2: row: found a carriage return inside a line, expected line feeds, or the cell in quotes"),
        ("a,b\r1,2\r", ":1: row: found a carriage return inside a line, expected line feeds, or the cell in quotes"),
        ("a,b\n1,\0\n", ":2: row: found a NUL byte, expected text (UTF-8; not UTF-16)"),
        ("a,,b\n1,2,3\n", ":1: header: found no name for column 2, expected names"),
        ("\na,b, \n", ":2: header: found no name for column 3, expected names"),
        ("a,b,a\n1,2,3\n", ":1: header: found the column 'a' twice, expected different names"),
        ("a;b\n1;2\n", ":1: header: found a semicolon between names, expected a comma"),
        ("a\tb\n1\t2\n", ":1: header: found a tab between names, expected a comma, or the ending .tsv"),
        ("a,b\n1,\udcff\n", ":2: row: found bytes that are not UTF-8 (0xff), expected UTF-8 text"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path, text, message):
    with pytest.raises(UserError) as caught:
        read(tmp_path, text.encode(errors="surrogateescape"))
    assert str(caught.value) == f"{tmp_path / 'a.csv'}{message}"


def test_a_stray_comma_shifts_no_row(tmp_path):
    """The library took the first of four cells for an index, and trained on the labels."""
    (tmp_path / "a.csv").write_text("prompt,response,comment\nSay hello,Hello, friend,x\nq,a,x\n")
    with pytest.raises(UserError, match=r"a\.csv:2: row: found 4 fields, expected 3 \(prompt, response, comment\)$"):
        load_rows(str(tmp_path / "a.csv"), "train", "sft")


def test_a_cell_may_be_a_book(tmp_path):
    book = "word " * 100_000
    assert read(tmp_path, f"text\n{book}\n") == [(2, {"text": book})]


def test_tabs(tmp_path):
    (tmp_path / "a.tsv").write_text("prompt\tresponse\nq, r\ta\n")
    assert load_rows(str(tmp_path / "a.tsv"), "train", "sft") == [{"prompt": "q, r", "response": "a"}]
    (tmp_path / "b.tsv").write_text("prompt,response\nq,a\n")
    with pytest.raises(
        UserError, match=r"b\.tsv:1: header: found a comma between names, expected a tab, or the ending \.csv$"
    ):
        load_rows(str(tmp_path / "b.tsv"), "train", "sft")


@pytest.mark.parametrize("separator", [",", "\t"])
@pytest.mark.parametrize("row", ['a, "b"', ' "a",b', 'a,  "b" c', '"a", "b'])
def test_a_space_before_a_quote_is_named(tmp_path, separator, row):
    text = f"text,label\n1,2\n{row}\n".replace(",", separator)
    with pytest.raises(UserError, match=r'a\.csv:3: row: found a space before a quote \("\), expected the quote right'):
        read(tmp_path, text, separator)


@pytest.mark.parametrize("separator", [",", "\t"])
@pytest.mark.parametrize("cell", ['5" screen', 'a "good" one', 'it"', 'a""b', 'a"b', '5" by 7"', 'say "hi'])
def test_a_quote_inside_a_cell_without_quotes_is_text(tmp_path, separator, cell):
    """RFC 4180 has none there, but people write inches: it opens nothing, so separators part cells as ever."""
    text = f'text,label,more\n{cell},pos,{cell}\n"x, y",neg,{cell}\n'.replace(",", separator)
    cells = [list(row.values()) for _, row in read(tmp_path, text, separator)]
    assert cells == [[cell, "pos", cell], [f"x{separator} y", "neg", cell]]


def test_a_quote_inside_a_cell_hides_no_separator(tmp_path):
    with pytest.raises(UserError, match=r"a\.csv:2: row: found 3 fields, expected 2 \(text, label\)$"):
        read(tmp_path, 'text,label\nHe said "hi, there",pos\n')


def test_a_space_before_a_quote_in_quotes_is_text(tmp_path):
    assert read(tmp_path, 'text,label\n" ""b"" c", 1.5\n') == [(2, {"text": ' "b" c', "label": " 1.5"})]
