"""What of a run's folder a path is: its parts are easily given in one another's place, and told for what they are."""

import re
from pathlib import Path
from zipfile import is_zipfile

from gpt_modules.errors import UserError
from gpt_modules.storage.model_files import CONFIG_FILE, WEIGHTS_FILE
from gpt_modules.storage.paths import is_there

EXPORT, CHECKPOINTS = "export", "checkpoints"
SHARD_INDEX = "index.json"
"""In a checkpoint that is a folder."""
_NAME = re.compile(r"step=\d+\.ckpt")


def expect_model(path: Path) -> None:
    """For what is read as a model's folder, or of one.

    Raises:
        UserError: the path is a file in such a folder, the folder of a run, or what a run goes on from.
    """
    if not is_there(path) or (path / CONFIG_FILE).is_file():
        return
    if path.is_file() and path.name in (CONFIG_FILE, WEIGHTS_FILE):
        raise UserError(f"{path}: found a file of a model's, expected its folder: {path.parent}")
    checkpoint = next((place for place in (path, *path.parents) if _NAME.fullmatch(place.name)), None)
    root = _run_of(path) if checkpoint is None else checkpoint.parent.parent
    if root is not None:
        found = "the folder of a run" if checkpoint is None else "a checkpoint, from which its own run goes on"
        made = "" if (root / EXPORT / CONFIG_FILE).is_file() else ", which is not there yet"
        raise UserError(f"{path}: found {found}, expected a model's folder, as the run's {root / EXPORT}{made}")


def expect_checkpoint(path: Path, key: str) -> None:
    """For what a run is to go on from; whether it is whole is known when it is read.

    Args:
        key: which names the path.

    Raises:
        UserError: the path is nothing that a run goes on from.
    """
    if not is_there(path):
        raise UserError(f"{path}: no such checkpoint")
    around, model, root = (find(path) for find in (_checkpoint_around, _model_of, _run_of))
    if around is not None:
        wrong = f"a part of a checkpoint, expected all of it: {around}"
    elif model is not None:
        wrong = f"an exported model, expected a checkpoint; --model.init_from {model} begins a run with its weights"
    elif root is not None:
        wrong = (
            f"the folder of a run, expected one in {root / CHECKPOINTS}, or last beside its trainer.default_root_dir"
        )
    elif not _may_be_one(path):
        wrong = "which a run did not write, expected a checkpoint"
    else:
        return
    raise UserError(f"{key}: found {str(path)!r}, {wrong}")


def _checkpoint_around(path: Path) -> Path | None:
    return next((folder for folder in path.parents if _NAME.fullmatch(folder.name)), None)


def _may_be_one(path: Path) -> bool:
    """What is damaged is told so by its reader."""
    if path.with_name(f"{path.name}.sha256").is_file():
        return True
    return (path / SHARD_INDEX).is_file() if path.is_dir() else is_zipfile(path)


def _model_of(path: Path) -> Path | None:
    """The folder of the model that lies here, or whose weights or configuration do."""
    folder = path.parent if path.name in (CONFIG_FILE, WEIGHTS_FILE) else path
    return folder if (folder / CONFIG_FILE).is_file() else None


def _run_of(path: Path) -> Path | None:
    if path.name == CHECKPOINTS and any(path.glob("step=*.ckpt")):
        return path.parent
    return path if any(path.glob(f"{CHECKPOINTS}/step=*.ckpt")) or (path / EXPORT / CONFIG_FILE).is_file() else None
