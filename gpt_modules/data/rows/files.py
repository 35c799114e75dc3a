"""Rows from files on this machine: .jsonl, .json, .csv, .parquet and .txt, and where exactly a file is wrong.

The `datasets` library reads them. It reports a bad row without its line, or turns it into something else in silence;
so where it fails, or hands over a row that does not fit, a JSON file is read again line by line and the first bad
line is named.
"""

import codecs
import csv
import glob
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from gpt_modules.data.rows.hub import quiet_datasets
from gpt_modules.data.rows.schemas import Check, FieldError, Schema
from gpt_modules.data.splits import Row
from gpt_modules.errors import UserError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".txt")
_BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def is_local(item: str) -> bool:
    """Whether a source means files here, not a name on the hub."""
    path = Path(item).expanduser()
    return item.endswith(SUFFIXES) or glob.has_magic(item) or item.startswith((".", "/", "~")) or path.exists()


def find_files(item: str) -> list[Path]:
    """The files of a path, folder or glob, sorted.

    Raises:
        UserError: There is none, or one is empty or of a kind that is not read.
    """
    path = Path(item).expanduser()
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES)
    elif path.exists() or not glob.has_magic(item):
        found = [path]
    else:
        found = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())  # noqa: PTH207
    if not found:
        raise UserError(f"{item}: found no file, expected {', '.join(SUFFIXES)}")
    for file in found:
        _check_file(file)
    return found


def file_rows(path: Path, schema: Schema | Check, check: Check, folder: str, streaming: bool) -> Iterator[Row]:
    if path.suffix != ".parquet":
        _check_utf8(path)
    if path.suffix == ".txt":
        yield from _text_rows(path, schema)
        return
    first = 2 if path.suffix == ".csv" else 1  # the header is a CSV file's row 1
    good = 0
    try:
        for record in _open_file(path, folder, streaming):
            row = check(record)
            good += 1
            yield row
    except FieldError as error:
        if _BUILDERS[path.suffix] != "json":
            raise UserError(f"{path}:{good + first}: {error}") from error
        yield from islice(_json_rows(path, check), good, None)
    except Exception as error:  # whatever the library raises, it does not name the row
        if _BUILDERS[path.suffix] != "json":
            _refuse(path, error)
        yield from islice(_json_rows(path, check), good, None)


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path}: found no such file, expected {', '.join(SUFFIXES)}")
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: found the ending {path.suffix!r}, expected {', '.join(SUFFIXES)}")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: found an empty file, expected rows")


def _check_utf8(path: Path) -> None:
    """The library replaces or skips bytes that are not UTF-8, so look first; one pass, no more than a read."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line, blank = 1, True
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            try:
                text = decoder.decode(chunk)
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                raise UserError(f"{path}:{line}: row: found bytes that are not UTF-8, expected UTF-8 text") from error
            line += text.count("\n")
            blank = blank and not text.strip()
    if decoder.getstate()[0]:
        raise UserError(f"{path}:{line}: row: found the file cut off inside a character, expected UTF-8 text")
    if blank:
        raise UserError(f"{path}: found only blank lines, expected rows")


def _open_file(path: Path, folder: str, streaming: bool) -> Iterable[Any]:
    options: dict[str, Any] = {}
    if path.suffix == ".csv":  # cells are text, whatever they look like
        with path.open(encoding="utf-8-sig", newline="") as file:
            columns = next(csv.reader(file), [])
        options = {"converters": dict.fromkeys(columns, str), "keep_default_na": False, "na_filter": False}
    with quiet_datasets() as datasets:
        kind, name = _BUILDERS[path.suffix], glob.escape(str(path))
        rows: Iterable[Any] = datasets.load_dataset(
            kind, data_files=[name], split="train", cache_dir=folder, streaming=streaming, **options
        )
        return rows


def _refuse(path: Path, error: BaseException) -> NoReturn:
    while error.__cause__ is not None:
        error = error.__cause__
    reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
    raise UserError(f"{path}: found no readable {path.suffix} file ({reason}), expected rows") from error


def _text_rows(path: Path, schema: Schema | Check) -> Iterator[Row]:
    """A text file is one document to pretrain on, or one prompt a line."""
    if schema not in ("pretraining", "ppo"):
        raise UserError(f"{path}: found a text file, expected rows with fields ({', '.join(SUFFIXES[:-1])})")
    text = path.read_text(encoding="utf-8-sig")
    if schema == "pretraining":
        yield {"text": text}
        return
    yield from ({"prompt": line} for line in text.splitlines() if line.strip())


def _json_rows(path: Path, check: Check) -> Iterator[Row]:
    """A JSON file read by Python: slower than the library, and exact about lines."""
    for number, record in _json_records(path):
        try:
            yield check(record)
        except FieldError as error:
            raise UserError(f"{path}:{number}: {error}") from error


def _json_records(path: Path) -> Iterator[tuple[int, object]]:
    with path.open(encoding="utf-8-sig") as file:
        if path.suffix == ".json" and file.read(4096).lstrip().startswith("["):
            file.seek(0)
            yield from enumerate(_parse_json(path, 1, file.read()), start=1)
            return
        file.seek(0)
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _parse_json(path, number, line)


def _parse_json(path: Path, number: int, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        what = (
            f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else type(error).__name__
        )
        number += error.lineno - 1 if isinstance(error, json.JSONDecodeError) else 0
        raise UserError(f"{path}:{number}: row: found broken JSON ({what}), expected one object") from error
