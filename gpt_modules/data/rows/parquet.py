"""Parquet files, row group by row group: no copy of them is kept, so none can be out of date."""

from collections.abc import Iterator
from pathlib import Path

from gpt_modules.errors import UserError

BATCH = 1024  # rows decoded at a time


def parquet_rows(path: Path) -> Iterator[tuple[int, object]]:
    """(number from 1, record) of a file's rows.

    Raises:
        UserError: It is not parquet, or is damaged.
    """
    import pyarrow
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(BATCH):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise UserError(f"{path}: found no readable .parquet file ({reason}), expected rows") from error
