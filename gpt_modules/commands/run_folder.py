"""The folder of a run: held by one process, never begun twice, and nothing of the run outside it."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import lightning.pytorch as L
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from gpt_modules.commands.parsing.composition import Composition
from gpt_modules.errors import UserError
from gpt_modules.storage.durable import check_writable, no_room, replace_durably, write_durably
from gpt_modules.storage.yaml_files import Place

RECIPE_FILE = "config.yaml"
_FOLDERS = ("dirpath", "save_dir", "log_dir", "root_dir")
_NAMES = ("filename", "filename_suffix", "name", "version", "sub_dir", "prefix")


class SavedRecipe(SaveConfigCallback):
    """Writes `<root>/config.yaml` when training begins, without the checkpoint to go on from: the file is the recipe,
    and runs again. A run that makes no step leaves what stood there before.
    """

    def __init__(self, parser: LightningArgumentParser, config: Any, **options: Any) -> None:
        config = config.clone()
        config["ckpt_path"] = None
        super().__init__(parser, config, **options)
        self._before: bytes | None = None
        self._first_step: int | None = None
        self._curves = _curves(config["trainer"]["default_root_dir"])  # before any callback writes to them

    @property
    def text(self) -> str:
        """The recipe."""
        text: str = self.parser.dump(self.config, skip_none=False, format="yaml")
        return text

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Not yet: what is wrong may still show."""

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Write it."""
        if not trainer.is_global_zero:
            return
        path = Path(trainer.default_root_dir) / RECIPE_FILE
        self._before, self._first_step = path.read_bytes() if path.is_file() else None, trainer.global_step
        replace_durably(path, self.text)

    def on_exception(self, trainer: L.Trainer, *_: Any) -> None:
        """Leave what stood there when no step was made: the recipe, and the curves."""
        if self._first_step is not None and trainer.global_step != self._first_step:
            return
        if trainer.is_global_zero:
            self._remove_curves(trainer)
        if self._first_step is None:
            return
        path = Path(trainer.default_root_dir) / RECIPE_FILE
        if self._before is None:
            path.unlink(missing_ok=True)
        else:
            before = self._before
            write_durably(path, lambda temporary: temporary.write_bytes(before))

    def _remove_curves(self, trainer: L.Trainer) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and logger._experiment is not None:
                logger._experiment.close()
                logger._experiment = None
        for events in _curves(trainer.default_root_dir) - self._curves:
            events.unlink(missing_ok=True)


def _curves(root: str) -> set[Path]:
    return {path for pattern in ("events.out.tfevents.*", "hparams.yaml") for path in Path(root).glob(pattern)}


def _held(root: Path) -> list[str]:
    """What a run has reached in its folder."""
    held = [name for name in ("summary.json", "export") if (root / name).exists()]
    return held + (["checkpoints"] if any((root / "checkpoints").glob("step=*.ckpt")) else [])


def weights_of(root: Path, checkpoint: str | None, init_from: str | None) -> str:
    """Whose weights a stage measures that learns none, in words.

    Args:
        root: the run's folder.
        checkpoint: what `--ckpt_path` names, if it does.
        init_from: the folder that the recipe's model begins from; None: new weights.

    Raises:
        UserError: they are new ones, in the folder of a run that has learnt some.
    """
    if checkpoint is not None:
        return f"those of the checkpoint {checkpoint}"
    held = _held(root)
    if init_from is None and held:
        found = f"not given, and new weights are not those of the run that {root} holds ({', '.join(held)})"
        theirs = "last" if "checkpoints" in held else f"--model.config null --model.init_from {root / 'export'}"
        other = "for new weights name another --trainer.default_root_dir"
        raise UserError(f"--ckpt_path: {found}; expected {theirs}; {other}")
    if init_from is None:
        return "new ones, drawn with the seed"
    elsewhere = "checkpoints" in held and not Path(init_from).resolve().is_relative_to(root.resolve())
    learnt = f"; those of the run in {root}: --ckpt_path last" if elsewhere else ""
    return f"those of init_from, {init_from}{learnt}"


def begin_anew(root: Path, recipe: Callable[[], str]) -> None:
    """Check that a first step may be made in a folder.

    A run that was cut off before its first checkpoint left its recipe and a beginning of its curves: the same recipe
    takes its place. To write out a `recipe` takes a while: only where there is one to compare it with.

    Raises:
        UserError: the folder holds what a run has reached, or the beginning of another one.
    """
    held = _held(root)
    resume = "go on with --ckpt_path last, or " if "checkpoints" in held else ""
    if held:
        raise UserError(
            f"{root}: holds an earlier run ({', '.join(held)}); {resume}name another --trainer.default_root_dir, or "
            "remove the folder"
        )
    begun = root / RECIPE_FILE
    if not begun.exists():
        return
    if not begun.is_file():
        raise UserError(f"{begun}: found a folder, expected nothing or the recipe of a run; remove it")
    if begun.read_bytes() != recipe().encode():
        raise UserError(
            f"{begun}: an earlier run began here with another recipe; name another --trainer.default_root_dir, or "
            "remove the folder"
        )
    for events in root.glob("events.out.tfevents.*"):
        events.unlink()


def lock(root: Path) -> IO[str]:
    """Hold the run's folder for this process; the kernel releases it, however the process ends.

    Raises:
        UserError: when another process writes there, or nobody can.
    """
    try:
        check_writable(root)  # a full disk still takes names and empty files
        file = (root / ".lock").open("w")
    except OSError as error:
        raise UserError(f"trainer.default_root_dir: {no_room(root, error)}") from error
    except UserError as error:
        raise UserError(f"trainer.default_root_dir: {error}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise UserError(
            f"{root}: another run writes here; wait for it or name another --trainer.default_root_dir"
        ) from error
    return file


def missing(root: Path) -> list[Path]:
    """The folder and those around it that there are not, the innermost first."""
    return [path for path in (root, *root.parents) if not path.exists()]


def leave_nothing(root: Path, made: list[Path]) -> None:
    """Remove the folder of a run that was refused before it wrote anything, with those that were `made` for it."""
    with suppress(OSError):  # the first that holds something else
        if root in made and os.listdir(root) == [".lock"]:  # noqa: PTH208
            (root / ".lock").unlink()
            for path in made:
                path.rmdir()


def keep_inside(root: Path, trainer: Any, recipe: Composition) -> None:
    """Check that callbacks, loggers, profilers and the like write below the run's folder.

    Args:
        trainer: the parsed section `trainer`, as plain values.

    Raises:
        UserError: for a folder elsewhere or a name that leads out.
    """
    for place, key, value in _arguments(trainer, ("trainer",)):
        if not isinstance(value, str):
            continue
        path = Path(value) if key in _FOLDERS else root / value
        climbs = (
            key in _NAMES and ".." in Path(value).parts
        )  # what stands before it may be a name still to be filled in
        if climbs or not path.resolve().is_relative_to(root.resolve()):
            raise UserError(f"{recipe.where(place)}: found {value!r}, expected a place below the run's folder, {root}")


def _arguments(value: Any, place: Place) -> Iterator[tuple[Place, str, Any]]:
    """The arguments of classes that say where something is written."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key in (*_FOLDERS, *_NAMES) and {"init_args", "dict_kwargs"} & {*place}:
                yield (*place, key), key, item
            else:
                yield from _arguments(item, (*place, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _arguments(item, (*place, number))
