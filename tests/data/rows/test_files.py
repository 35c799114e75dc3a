"""Which files a source means, and the rows in them."""

import os
from pathlib import Path

import pytest

from gpt_modules.data.rows.fields import FieldError
from gpt_modules.data.rows.files import COMPRESSED, SUFFIXES, file_rows, find_files, is_local, near_files
from gpt_modules.errors import UserError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(ask, *words):
    with pytest.raises(UserError) as refused:
        list(ask(*words))
    line = str(refused.value)
    assert "\n" not in line
    return line


def write(*names, content="x"):
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(content, encoding="utf-8")


@pytest.mark.parametrize(
    "item",
    [
        "", " ", "a.jsonl", "a.JSONL", "a.jsnol", "a.txt", "a.csv.gz", "notes.md", "./a", "/a", "~/a", "~nobody", "a/",
        "a/b/c", "a\\b", "*.x", "a[0-9]", "file", "folder", "folder/not-there",
    ],
)  # fmt: skip
def test_what_reads_like_a_path_or_is_there_is_local(item):
    write("file", "folder/x")
    assert is_local(item)


@pytest.mark.parametrize("item", ["imdb", "owner/name", "owner/name:config", "owner/name-1.0", "openai/gsm8k:main"])
def test_any_other_name_may_be_the_hubs(item):
    assert not is_local(item)


def test_a_name_of_the_hub_that_is_a_folder_here_is_the_folder():
    write("owner/name/a.jsonl")
    assert is_local("owner/name")
    assert list(map(str, find_files("owner/name"))) == ["owner/name/a.jsonl"]


def test_a_folder_is_its_own_files_of_rows_sorted():
    write("f/b.jsonl", "f/a.CSV", "f/readme.md", "f/c.zip", "f/deeper/d.jsonl", "f/.hidden")
    assert list(map(str, find_files("f"))) == ["f/a.CSV", "f/b.jsonl"]


def test_globs():
    write("f/b.jsonl", "f/a.jsonl", "f/x/c.jsonl", "f/note.txt")
    assert list(map(str, find_files("f/*.jsonl"))) == ["f/a.jsonl", "f/b.jsonl"]
    assert list(map(str, find_files("f/**/*.jsonl"))) == ["f/a.jsonl", "f/b.jsonl", "f/x/c.jsonl"]
    assert list(map(str, find_files("f/[ab].*"))) == ["f/a.jsonl", "f/b.jsonl"]
    write("odd[1].jsonl")
    assert list(map(str, find_files("odd[1].jsonl"))) == ["odd[1].jsonl"], "a file of that name goes before the glob"


def test_the_home_folder(monkeypatch, here):
    monkeypatch.setenv("HOME", str(here))
    write("a.jsonl")
    assert find_files("~/a.jsonl") == [here / "a.jsonl"]


EXPECTED = "expected .jsonl, .json, .csv, .tsv, .parquet, .txt"


@pytest.mark.parametrize(
    ("item", "line"),
    [
        (" ", "source: found ' ', expected the name of a file, a folder or a data set"),
        ("none", f"none: found no file, {EXPECTED}"),
        ("*.csv", f"*.csv: found no file, {EXPECTED}"),
        ("gone.csv", f"gone.csv: found no such file, {EXPECTED}"),
        ("anwsers.jsonl", f"anwsers.jsonl: found no such file, {EXPECTED}; did you mean answers.jsonl?"),
        ("link.txt", f"link.txt: found a link to nothing, {EXPECTED}"),
        ("a.md", f"a.md: found the ending '.md', {EXPECTED}"),
        ("a", f"a: found the ending '', {EXPECTED}"),
        ("empty.txt", "empty.txt: found an empty file, expected rows"),
        ("*.md", f"a.md: found the ending '.md', {EXPECTED}"),
        ("fifo.jsonl", "fifo.jsonl: found a device, pipe or socket, expected a file (.jsonl, .json, .csv, .tsv, "
                       ".parquet, .txt)"),
    ],
)  # fmt: skip
def test_what_is_no_file_of_rows(here, item, line):
    write("a", "a.md", "none/a.md", "answers.jsonl")
    write("empty.txt", content="")
    (here / "link.txt").symlink_to("gone")
    os.mkfifo("fifo.jsonl")
    assert refusal(find_files, item) == line


@pytest.mark.parametrize("ending", COMPRESSED)
def test_a_compressed_file_of_rows_is_never_left_out(ending):
    write("f/a.jsonl", f"f/b.jsonl{ending}", f"f/other{ending}")
    packed = f"f/b.jsonl{ending}: found a compressed file, expected it unpacked ({', '.join(SUFFIXES)})"
    for source in ("f", f"f/b.jsonl{ending}", "f/*"):
        assert refusal(find_files, source) == packed


def test_near_names_are_told_with_and_without_their_ending():
    write("my_answers.jsonl", "f/train.csv", "other.md")
    assert near_files("my_anwsers") == ["my_answers.jsonl"]
    assert near_files("my_anwsers.jsonl") == ["my_answers.jsonl"]
    assert near_files("f/trian") == ["f/train.csv"]
    assert near_files("othr") == [], "of files that are read only"
    assert near_files("x" * 5000) == near_files("nowhere/x") == near_files("a\0b") == []


def as_it_is(record):
    return record


def refuse_two(record):
    if record["text"] == "two":
        raise FieldError("text", "two", "another number")
    return record


JSON_LIST = '[\n{"text": "one"},\n\n{"text": "two"}]'


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("a.jsonl", '{"text": "one"}\n\n{"text": "two"}\n', "a.jsonl:3"),
        ("a.json", JSON_LIST, "a.json:4: row 2"),
        ("a.csv", 'text\none\n"two"\n', "a.csv:3"),
        ("a.tsv", "text\none\ntwo\n", "a.tsv:3"),
        ("A.TSV", "text\none\ntwo\n", "A.TSV:3"),
    ],
)
def test_rows_are_checked_in_order_and_told_by_physical_line(here, name, content, where):
    write(name, content=content)
    assert list(file_rows(here / name, "sft", as_it_is)) == [{"text": "one"}, {"text": "two"}]
    rows = file_rows(here / name, "sft", refuse_two)
    assert next(rows) == {"text": "one"}
    assert refusal(lambda: rows) == f"{here / where}: {FieldError('text', 'two', 'another number')}"


def test_rows_of_parquet_are_told_by_number(here):
    import pyarrow
    from pyarrow.parquet import write_table

    write_table(pyarrow.table({"text": ["one", "two"]}), "a.parquet")
    assert list(file_rows(here / "a.parquet", "sft", as_it_is)) == [{"text": "one"}, {"text": "two"}]
    told = refusal(file_rows, here / "a.parquet", "sft", refuse_two)
    assert told.startswith(f"{here}/a.parquet: row 2: text: found two")


@pytest.mark.parametrize(("name", "content"), [("a.json", "[]"), ("a.csv", "text\n"), ("a.tsv", "text\n")])
def test_no_row_is_told(here, name, content):
    write(name, content=content)
    told = refusal(file_rows, here / name, "sft", as_it_is)
    assert told == f"{here / name}: found no row, expected at least one"


def test_a_text_is_one_document_or_a_prompt_a_line_and_only_line_feeds_end_one(here):
    text = "\N{BYTE ORDER MARK}one\u2028still one\x0b\x0c\x85\n \n\n two \nthree"
    write("a.txt", content=text)
    assert list(file_rows(here / "a.txt", "pretraining", as_it_is)) == [{"text": text[1:]}]
    assert list(file_rows(here / "a.txt", "ppo", as_it_is)) == [
        {"prompt": "one\u2028still one\x0b\x0c\x85"}, {"prompt": " two "}, {"prompt": "three"},
    ]  # fmt: skip
    expected = "expected rows with fields (.jsonl, .json, .csv, .tsv, .parquet)"
    for schema in ("sft", "reward", as_it_is):
        assert refusal(file_rows, here / "a.txt", schema, as_it_is) == f"{here}/a.txt: found a text file, {expected}"
