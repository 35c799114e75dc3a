"""Rows of parquet files, from the file itself."""

import pyarrow
import pytest
from pyarrow.parquet import ParquetWriter, write_table

from gpt_modules.data.rows.parquet import BATCH, parquet_rows
from gpt_modules.errors import UserError


def test_rows_keep_their_types_and_are_numbered_from_one(tmp_path):
    records = [
        {"text": "007", "n": 7, "share": 0.5, "tags": ["a", "b"], "meta": {"kind": "x"}, "gone": None},
        {"text": "\u2028ä\0\n", "n": -1, "share": None, "tags": [], "meta": {"kind": None}, "gone": None},
    ]
    write_table(pyarrow.Table.from_pylist(records), tmp_path / "a.parquet")
    assert list(parquet_rows(tmp_path / "a.parquet")) == [(1, records[0]), (2, records[1])]


def test_numbers_go_on_over_batches_and_row_groups(tmp_path):
    path, count = tmp_path / "a.parquet", 2 * BATCH + 3
    table = pyarrow.table({"n": range(count)})
    with ParquetWriter(path, table.schema) as writer:
        for start in range(0, count, 700):
            writer.write_table(table.slice(start, 700))
    assert list(parquet_rows(path)) == [(number, {"n": number - 1}) for number in range(1, count + 1)]


def test_no_rows_and_no_columns(tmp_path):
    write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), tmp_path / "a.parquet")
    assert list(parquet_rows(tmp_path / "a.parquet")) == []
    write_table(pyarrow.table({}), tmp_path / "b.parquet")
    assert list(parquet_rows(tmp_path / "b.parquet")) == []


def refusal(path):
    with pytest.raises(UserError) as refused:
        list(parquet_rows(path))
    line = str(refused.value)
    assert line.startswith(f"{path}: found no readable .parquet file (")
    assert line.endswith("), expected rows")
    assert "\n" not in line
    assert len(line) <= 400
    return line


@pytest.mark.parametrize("content", [b"", b"text\n1\n", b"PAR1", b"PAR1" + b"\0" * 100 + b"PAR1"])
def test_what_is_no_parquet_file(tmp_path, content):
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    refusal(path)


@pytest.mark.parametrize("part", [0.25, 0.5, 0.99])
def test_a_file_that_was_cut_off(tmp_path, part):
    path = tmp_path / "a.parquet"
    write_table(pyarrow.table({"text": [f"row {number}" for number in range(2000)]}), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    refusal(path)


def test_a_changed_byte_of_a_page_is_found_by_its_checksum(tmp_path):
    """Without it, this file reads as another text."""
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": ["what was written here"]})
    write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True, write_statistics=False)
    content = path.read_bytes()
    assert content.count(b"what was written") == 1
    path.write_bytes(content.replace(b"what was written", b"what is not true"))
    assert "CRC" in refusal(path)


def test_text_that_is_not_utf8(tmp_path):
    path = tmp_path / "a.parquet"
    broken = pyarrow.StringArray.from_buffers(1, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0"), pyarrow.py_buffer(b"\xff"))
    write_table(pyarrow.table({"text": broken}), path)
    refusal(path)
