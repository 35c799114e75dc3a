"""Files that are whole or absent at any moment, whatever happens to the process or the machine."""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gpt_modules.errors import UserError


def write_durably(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary path)` in the same directory, sync, then rename.

    Raises:
        UserError: the disk is full or cannot be written; what stood under the name still stands.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError about file positions
        raise no_room(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def replace_durably(path: Path, text: str) -> None:
    """A small text file."""
    write_durably(path, lambda temporary: temporary.write_bytes(text.encode()))


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def no_room(path: Path, error: Exception) -> UserError:
    """The line for what could not be written, with the room that is left."""
    free = ""
    with suppress(OSError):
        free = f", {shutil.disk_usage(path.parent).free / 1e6:,.1f} MB free"
    reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
    return UserError(f"{path}: could not be written ({reason}{free}), expected room and the right to write")
