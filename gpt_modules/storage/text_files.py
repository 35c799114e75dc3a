"""Reading a text file that anybody may have written: whole, bounded, UTF-8. A plain `open` reads a pipe for ever."""

from pathlib import Path

from gpt_modules.errors import UserError

LARGEST = 1 << 26  # bytes; no document of a model, a run or a corpus comes near


def read_text(path: Path, expected: str, largest: int = LARGEST) -> str:
    """The text of a file that is no larger than `largest` bytes, without its byte order mark.

    Raises:
        UserError: it is missing, no file, larger, not to be read, or not UTF-8 (with its line).
    """
    try:
        if path.exists() and not path.is_file():  # a pipe or a device would be read for ever
            raise UserError(f"{path}: found no file, expected {expected}")
        with path.open("rb") as file:
            data = file.read(largest + 1)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, expected {expected}") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{str(path)[:200]!r}: cannot be read ({reason}), expected {expected}") from error
    if len(data) > largest:
        raise UserError(f"{path}: found more than {largest:,} bytes, expected {expected}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: found bytes that are not UTF-8, expected {expected}") from error
