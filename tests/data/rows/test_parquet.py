"""Rows of parquet files, from the file itself."""

import datetime
import json
from decimal import Decimal

import pyarrow
import pytest
from pyarrow.parquet import ParquetWriter, write_table

from gpt_modules.data.rows.labelled import Columns, LabelledRow
from gpt_modules.data.rows.parquet import BATCH, parquet_rows
from gpt_modules.data.rows.sources import load_rows
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


TEXT, TIME = pyarrow.array(["a b", "c d"]), datetime.datetime(2020, 1, 1)
PROCEDURES = {
    "pretraining": {"text": TEXT},
    "sft": {
        "messages": pyarrow.array([[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], None]),
        "prompt": pyarrow.array([None, "q"]),
        "response": pyarrow.array([None, "a"]),
    },
    "reward": {
        "prompt": TEXT.dictionary_encode(),
        "responses": pyarrow.array([["x", "y"], ["z", "w"]], pyarrow.large_list(pyarrow.large_string())),
        "ranking": pyarrow.array([[1, 2], [2, 1]], pyarrow.list_(pyarrow.uint8(), 2)),
    },
    "ppo": {"prompt": TEXT.cast(pyarrow.string_view())},
    "finetuning": {"text": TEXT.cast(pyarrow.large_string()), "label": pyarrow.array([0.0, 1.0], pyarrow.float16())},
}


@pytest.mark.parametrize("procedure", PROCEDURES)
def test_rows_are_those_of_the_same_lines_of_json(tmp_path, procedure):
    """Whatever the columns are stored as, and beside columns of types that JSON has not."""
    columns = PROCEDURES[procedure]
    others = {"when": pyarrow.array([TIME, None]), "image": pyarrow.array([b"\xff", None])}
    write_table(pyarrow.table({**columns, **others}), tmp_path / "a.parquet")
    lines = [json.dumps(row) + "\n" for row in pyarrow.table(columns).to_pylist()]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    check = LabelledRow("classification", Columns()) if procedure == "finetuning" else procedure
    found, expected = (load_rows(str(tmp_path / f"a.{ending}"), "train", check) for ending in ("parquet", "jsonl"))
    further = [row.pop("columns", {}) for row in found]
    assert found == expected
    assert len(found) == 2
    assert [set(columns) for columns in further] == [{"when", "image"} if procedure == "ppo" else set(), set()]


@pytest.mark.parametrize(
    ("check", "column", "message"),
    [
        ("pretraining", {"text": [b"a"]}, "text: found a bytes, expected non-empty text"),
        ("pretraining", {"text": [TIME]}, "text: found a datetime, expected non-empty text"),
        ("pretraining", {"text": [["a"]]}, "text: found a list of 1, expected non-empty text"),
        (LabelledRow("classification", Columns()), {"label": [b"a"]}, "label: found a bytes, expected text or a whole"),
        (LabelledRow("classification", Columns(), ["2020-01-01 00:00:00", "b"]), {"label": [TIME]}, "label: found a d"),
        (LabelledRow("classification", Columns(), ["0", "1"]), {"label": [Decimal("1.0")]}, "label: found a Decimal, "),
        (LabelledRow("regression", Columns()), {"label": [b"1.5"]}, "label: found a bytes, expected a finite number"),
        (LabelledRow("regression", Columns()), {"label": [float("nan")]}, "label: found the number nan, expected a fi"),
    ],
)
def test_types_that_a_field_cannot_have(tmp_path, check, column, message):
    path = tmp_path / "a.parquet"
    write_table(pyarrow.table({"text": ["a"], **column}), path)
    with pytest.raises(UserError) as refused:
        load_rows(str(path), "train", check)
    assert str(refused.value).startswith(f"{path}: row 1: {message}")


@pytest.mark.parametrize(
    "values",
    [
        pyarrow.array([2**60], pyarrow.timestamp("us")),
        pyarrow.array([1], pyarrow.timestamp("us", tz="Mars/Phobos")),
        pyarrow.array([2**30], pyarrow.date32()),
        pyarrow.array([2**60], pyarrow.duration("s")),
    ],
    ids=["year", "zone", "date", "duration"],
)
def test_values_that_python_has_not(tmp_path, values):
    path = tmp_path / "a.parquet"
    write_table(pyarrow.table({"text": ["a"], "when": values}), path)
    refusal(path)


def test_a_name_that_two_columns_have(tmp_path):
    """The library's record has just the last of them."""
    path = tmp_path / "a.parquet"
    write_table(pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"]), path)
    with pytest.raises(UserError) as refused:
        list(parquet_rows(path))
    assert str(refused.value) == f"{path}: found the column 'text' twice, expected different names"
