"""Folders as units: found by path or by name on the hub, read with a word to the user, written all or nothing."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gpt_modules.errors import UserError
from gpt_modules.storage.durable import discard, exchanged, room_for, sync, temporary_for
from gpt_modules.storage.hub import fetch, is_hub_name
from gpt_modules.storage.model_files import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    CARD_FILE,
    CONFIG_FILE,
    GENERATION_FILE,
    TEMPLATE_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
)
from gpt_modules.storage.paths import is_there, path_of
from gpt_modules.storage.recipes import writer_of
from gpt_modules.storage.run_parts import expect_model

# All that is ever fetched: no pickles, no code.
_HUB_FILES = [
    CONFIG_FILE,
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*.json",
    TEMPLATE_FILE,
    GENERATION_FILE,
]
_OUR_FILES = {
    CONFIG_FILE,
    WEIGHTS_FILE,
    "inner_rates.safetensors",
    TOKENIZER_FILE,
    "tokenizer_config.json",
    TEMPLATE_FILE,
    GENERATION_FILE,
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
}


def find_folder(name: str | Path) -> Path:
    """The folder of that path or, where there is none and it reads like one, of that name on the Hugging Face hub."""
    if not str(name).strip():  # as a path it would be the folder that the command runs in
        raise UserError(
            f"model folder: found {str(name)!r}, expected a folder's path or a name on the Hugging Face hub"
        )
    folder = path_of(name)
    expect_model(folder)
    if is_there(folder) and folder.is_dir():
        return folder
    if is_there(folder):
        raise UserError(f"{name}: found a file, expected a model folder")
    if not isinstance(name, str) or not is_hub_name(name):
        expected = "expected a model folder or a name on the Hugging Face hub"
        raise UserError(f"{str(name)[:200]}: no such folder, {expected}{writer_of(str(name))}")
    return fetch(name, _HUB_FILES)


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which takes the place of `folder` once all is written and on disk.

    Raises `UserError` where `folder` holds anything but a model, for that would be lost, and where the disk is full or
    cannot be written: then what stood there still stands.
    """
    check_replaceable(folder)
    new = temporary_for(folder)
    with room_for(folder):
        try:
            new.mkdir(parents=True)
            yield new
            for path in new.iterdir():
                path.chmod(new.stat().st_mode & 0o666)  # as the umask says; safetensors writes for the owner alone
                sync(path)
            sync(new)
            _swap(new, folder)
            sync(folder.parent)
        finally:
            with suppress(OSError):
                discard(new)


def check_new(folder: Path) -> None:
    """Raises `UserError` where anything stands in `folder`, a model too: nobody asked for its loss."""
    found = min((path.name for path in folder.iterdir()), default=None) if folder.is_dir() else None
    if found is not None:
        raise UserError(f"{folder}: found {found}, expected a new folder: name another, or remove this one")
    check_replaceable(folder)


def check_replaceable(folder: Path) -> None:
    """Raises `UserError` where `folder` holds anything but a model."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: found a file, expected a folder to write a model to")
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    # A README without a model beside it is somebody's own.
    known = _OUR_FILES | ({CARD_FILE} if found & {CONFIG_FILE, ADAPTER_CONFIG_FILE, WEIGHTS_FILE} else set())
    foreign = sorted(found - known)
    if foreign:
        raise UserError(f"{folder}: found {foreign[0]}, expected a new folder or one that holds nothing but a model")


def _swap(new: Path, folder: Path) -> None:
    """Afterwards what stood at `folder`, if anything did, stands at `new`."""
    if not folder.exists():
        new.rename(folder)
    elif not exchanged(new, folder):
        # A folder with files in it cannot be renamed over: the old one steps aside for an instant.
        old = temporary_for(folder)
        folder.rename(old)
        new.rename(folder)
        old.rename(new)
