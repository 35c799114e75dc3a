"""Parquet files, row group by row group: no copy of them is kept, so none can be out of date."""

from collections.abc import Iterator
from pathlib import Path

from gpt_modules.errors import UserError

BATCH = 1024  # rows decoded at a time


def parquet_rows(path: Path) -> Iterator[tuple[int, object]]:
    """(number from 1, record) of a file's rows.

    Raises:
        UserError: It is not parquet, is damaged, names two columns alike, or holds what Python cannot.
    """
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(path, page_checksum_verification=True) as file:
            _refuse_twins(path, file.schema_arrow.names)
            for batch in file.iter_batches(BATCH):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except UserError:
        raise
    except Exception as error:  # its own kinds, and those of values: dates beyond the year 9999, zones nobody knows
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise UserError(f"{path}: found no readable .parquet file ({reason}), expected rows") from error


def _refuse_twins(path: Path, names: list[str]) -> None:
    """Two columns of one name: a record would have just the last."""
    for number, name in enumerate(names):
        if name in names[:number]:
            raise UserError(f"{path}: found the column {name[:40]!r} twice, expected different names")
