"""Rows from files on this machine.

.jsonl    one JSON object a line. `json_rows` says what JSON is refused.
.json     one list of JSON objects, over any lines; or one object a line.
.csv      cells between commas, the first line names the columns, quotes as in RFC 4180 (`tables`).
          Semicolons are refused.
.tsv      the same with tabs.
.parquet  the columns of the file.
.txt      to pretrain on: one document a file. For PPO: one prompt a line, without blank lines.
a store of comparisons (`gpt compare`), by whatever name: to learn a reward from, a row for each vote that counts

Text is UTF-8 (`lines`); a byte order mark is dropped, a line ends with a line feed. Nothing is guessed from how a value
looks: a cell is text, and a number of JSON keeps its spelling. Every row is checked, and the first that does not fit is
named by file, physical line (in a list of JSON and in parquet: also by its number) and field. Nothing is cached.
"""

import glob
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path

from gpt_modules.data.rows.comparisons import store_rows
from gpt_modules.data.rows.fields import FieldError
from gpt_modules.data.rows.json_rows import json_lines, json_list
from gpt_modules.data.rows.lines import text_blocks, text_lines
from gpt_modules.data.rows.parquet import parquet_rows
from gpt_modules.data.rows.schemas import Check, Schema
from gpt_modules.data.rows.tables import SEPARATORS, table_rows
from gpt_modules.data.splits import PlacedRow, Row
from gpt_modules.errors import UserError
from gpt_modules.storage.comparisons import is_store, votes_digest
from gpt_modules.storage.digests import sha256_of
from gpt_modules.storage.paths import LIKENESS, is_there, lies_in_folder, near_names, path_of

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".lz4")
_OTHER_ENDINGS = (
    *(
        ".arrow",
        ".bin",
        ".dat",
        ".db",
        ".doc",
        ".docx",
        ".html",
        ".jsn",
        ".log",
        ".md",
        ".ndjson",
        ".npy",
        ".pdf",
        ".pickle",
    ),
    *(".pkl", ".pt", ".tab", ".tar", ".text", ".tgz", ".xls", ".xlsx", ".xml", ".yaml", ".yml"),
)


def is_local(item: str) -> bool:
    """Whether a source means files here, not a name on the hub: it or its folder is there, or it reads like
    a path or a file's name.
    """
    path = path_of(item)
    endings = (*SUFFIXES, *COMPRESSED, *_OTHER_ENDINGS)
    named = path.suffix.lower() in endings or bool(get_close_matches(path.suffix.lower(), SUFFIXES, 1, LIKENESS))
    like_a_path = item.startswith((".", "/", "~")) or item.count("/") > 1 or item.endswith("/") or "\\" in item
    return not item.strip() or named or like_a_path or glob.has_magic(item) or is_there(path) or lies_in_folder(item)


def find_files(item: str) -> list[Path]:
    """The files of a path, folder (its own files, not those of folders in it, nor hidden ones) or glob, sorted.

    Raises:
        UserError: There is none, or one is empty or of a kind that is not read.
    """
    path = path_of(item)
    if not item.strip():
        raise UserError(f"source: found {item!r}, expected the name of a file, a folder or a data set")
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.name[0] != "." and (_ending(p) in SUFFIXES or _packed(p)))
    elif is_there(path) or not glob.has_magic(item):
        found = [path]
    else:
        found = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if not Path(p).is_dir())  # noqa: PTH207
    if not found:
        raise UserError(f"{item}: found no file, expected {', '.join(SUFFIXES)}")
    for file in found:
        _check_file(file)
    return found


def refuse_twice(files: Iterable[Path]) -> None:
    """What stands twice in a source would count twice.

    Raises:
        UserError: Two of the files are one, under whatever names.
    """
    known: dict[tuple[int, int], Path] = {}
    for path in filter(is_there, files):
        status = path.stat()
        first = known.setdefault((status.st_dev, status.st_ino), path)
        if first is not path:
            named = "" if first == path else f", first as {first}"
            raise UserError(f"{path}: found this file twice in one source{named}, expected each once")


def near_files(item: str) -> list[str]:
    """Files that may have been meant: of nearly the source's name, whole or without its ending, and there."""
    path = path_of(item)
    try:
        stems = {entry.stem: entry for entry in path.parent.iterdir() if _ending(entry) in SUFFIXES}
    except (OSError, ValueError):
        stems = {}
    close = get_close_matches(path.name, stems, 3, LIKENESS)
    near = dict.fromkeys([*near_names(item), *(str(stems[stem]) for stem in close)])
    return [name for name in near if is_there(Path(name))]


def file_rows(path: Path, schema: Schema | Check, check: Check) -> Iterator[Row]:
    """The checked rows of a file.

    Raises:
        UserError: The file or a row of it is not as it should be, or there is none.
    """
    if _ending(path) == ".txt":
        yield from _text_rows(path, schema)
        return
    if is_store(path) and schema != "reward":
        raise UserError(f"{path}: found comparisons, expected rows for this procedure")
    found = False
    for where, record in _records(path):
        try:
            row = PlacedRow(check(record), where)
        except FieldError as error:
            raise UserError(f"{where}: {error}") from error
        found = True
        yield row
    if not found:
        raise UserError(f"{path}: found no {'vote' if is_store(path) else 'row'}, expected at least one")


def rows_digest(path: Path) -> str:
    """SHA-256 of what a file says: its bytes, and of a store of comparisons the votes that count."""
    return votes_digest(path) if is_store(path) else sha256_of(path)


def _records(path: Path) -> Iterator[tuple[str, object]]:
    """(where, record): file and line, for an error message."""
    ending = _ending(path)
    if is_store(path):
        yield from store_rows(path)
    elif ending == ".parquet":
        yield from ((f"{path}: row {number}", record) for number, record in parquet_rows(path))
    elif ending == ".json":
        rows = enumerate(json_list(path), start=1)
        yield from ((f"{path}:{line}: row {number}", record) for number, (line, record) in rows)
    else:
        lines = json_lines(path) if ending == ".jsonl" else table_rows(path, SEPARATORS[ending])
        yield from ((f"{path}:{line}", record) for line, record in lines)


def _text_rows(path: Path, schema: Schema | Check) -> Iterator[Row]:
    """A text file is one document to pretrain on, or one prompt a line."""
    if schema == "pretraining":
        yield {"text": "".join(text_blocks(path))}
    elif schema == "ppo":
        yield from ({"prompt": line} for line in text_lines(path) if line.strip())
    else:
        raise UserError(f"{path}: found a text file, expected rows with fields ({', '.join(SUFFIXES[:-1])})")


def _check_file(path: Path) -> None:
    expected = ", ".join(SUFFIXES)
    if _packed(path):
        raise UserError(f"{path}: found a compressed file, expected it unpacked ({expected})")
    if not is_there(path):
        near = near_files(str(path))
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        kind = "a link to nothing" if path.is_symlink() else "no such file"
        raise UserError(f"{path}: found {kind}, expected {expected}{meant}")
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "a device, pipe or socket"
        raise UserError(f"{path}: found {kind}, expected a file ({expected})")
    if _ending(path) not in SUFFIXES and not is_store(path):
        raise UserError(f"{path}: found the ending {path.suffix!r}, expected {expected}")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: found an empty file, expected rows")


def _ending(path: Path) -> str:
    return path.suffix.lower()


def _packed(path: Path) -> bool:
    """Whether it is a file of rows that was compressed."""
    return _ending(path) in COMPRESSED and _ending(Path(path.stem)) in SUFFIXES and path.is_file()
