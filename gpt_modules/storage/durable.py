"""Files that are whole or absent at any moment, whatever happens to the process or the machine.

All that is written goes under a temporary name in the same directory, is synced, and renamed. What a killed process
leaves behind has a name that no user's file has, so that it alone is cleared away.
"""

import ctypes
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path

from safetensors import SafetensorError

from gpt_modules.errors import UserError

# How torch tells of a disk: a RuntimeError about its archive, or about positions in a file.
_TORCH_ON_DISKS = re.compile(
    r"inline_container|PytorchStreamWriter|unexpected pos|file write|iostream|^Parent directory"
)


def write_durably(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary path)` in the same directory, sync, then rename.

    Raises:
        UserError: the disk is full or cannot be written; what stood under the name still stands.
    """
    temporary = temporary_for(path)
    with room_for(path):
        try:
            write(temporary)
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
        finally:  # a signal that ends the process passes here, too
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def replace_durably(path: Path, text: str) -> None:
    """A small text file, in UTF-8, line ends as they are."""
    write_durably(path, lambda temporary: temporary.write_bytes(text.encode()))


def check_writable(folder: Path) -> None:
    """Make a folder, where there is none, and write a byte into it: what cannot be kept should not be computed.

    Raises:
        UserError: a file stands in its place, or nothing can be written there.
    """
    with room_for(folder):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: found a file, expected a folder to write to")
        folder.mkdir(parents=True, exist_ok=True)
        temporary = temporary_for(folder / "room")
        try:
            temporary.write_bytes(b"x")
            sync(temporary)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def temporary_for(path: Path) -> Path:
    """A name beside `path` to write under, of this call alone."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def clear_leftovers(path: Path) -> None:
    """Remove what killed processes left of writing `path`, whose name may be a pattern; the caller knows that no other
    writes it now.
    """
    for found in path.parent.glob(".*.tmp"):
        own = re.fullmatch(r"\.(.+)\.[0-9a-f]{32}\.tmp", found.name)
        if own is not None and fnmatchcase(own[1], path.name):
            discard(found)


def discard(path: Path) -> None:
    """Remove a file, a folder with all that is in it, or a link, and nothing that a link points at."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def exchanged(one: Path, other: Path) -> bool:
    """Let two names change places in one step, if the system and the file system can: neither is missing for an
    instant. False: they cannot, and nothing has changed.
    """
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def room_for(path: Path, after: str = "") -> Iterator[None]:
    """Turn what a full or read-only disk raises while `path` is written into the one line of `no_room`.

    Args:
        after: what the user should know besides, such as "what is whole stays".
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise no_room(path, error, after) from error
    except RuntimeError as error:
        if isinstance(error, UserError) or not _TORCH_ON_DISKS.search(str(error)):
            raise
        raise no_room(path, error, after) from error


def no_room(path: Path, error: Exception, after: str = "") -> UserError:
    """The line for what could not be written, with the room that is left."""
    free = ""
    with suppress(OSError, StopIteration):
        place = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
        free = f", {shutil.disk_usage(place).free / 1e6:,.1f} MB free"
    reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0][:120]
    after = after and f"; {after}"
    return UserError(f"{path}: could not be written ({reason}{free}), expected room and the right to write{after}")
