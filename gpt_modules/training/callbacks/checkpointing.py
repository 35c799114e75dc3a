"""Checkpoints that survive: atomic, verified, resumed exactly, and written when the run is told to stop.

Lightning stages a checkpoint in TMPDIR and moves it, which is not atomic across file systems; it reads a flipped bit
without noticing; it stores no random state; and it ends with status 0 on SIGTERM. Each class here closes one of these
gaps.
"""

import logging
import os
import random
import re
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning_utilities.core.rank_zero import rank_zero_warn

import gpt_modules.forks  # noqa: F401 -- whose processes do not inherit the handlers
from gpt_modules.errors import Stopped, UserError, expect
from gpt_modules.storage.digests import sha256_of
from gpt_modules.storage.durable import clear_leftovers, discard, temporary_for, write_durably
from gpt_modules.training.callbacks.plain_data import expect_plain
from gpt_modules.training.hyperparameters import expect_number
from gpt_modules.training.processes import as_one, place
from gpt_modules.training.sharding.files import INDEX, ShardFolder, Stored

log = logging.getLogger(__name__)

CHECKPOINT_NAME = re.compile(r"step=([0-9]{1,18})\.ckpt")


def digest_path(checkpoint: Path) -> Path:
    """Where the digest of a checkpoint lies."""
    return checkpoint.with_name(checkpoint.name + ".sha256")


def verifies(checkpoint: Path) -> bool:
    """True if the file, or each file of the folder, is what was written: present, and its digest is the one beside
    it. Several processes share the reading; called by all of them.
    """
    rank, world = place()

    def own() -> bool:
        if checkpoint.is_dir():
            index = _matches(checkpoint / INDEX, digest_path(checkpoint))
            return index and ShardFolder(checkpoint).verifies(rank, world)
        return rank > 0 or _matches(checkpoint, digest_path(checkpoint))

    return all(as_one(own))


def _matches(file: Path, digest: Path) -> bool:
    return file.is_file() and digest.is_file() and digest.read_bytes().strip() == sha256_of(file).encode()


def checkpoints(folder: Path) -> list[Path]:
    """Those that `ExactCheckpoint` has written, by their steps."""
    found = [path for path in folder.glob("step=*.ckpt") if CHECKPOINT_NAME.fullmatch(path.name)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Optimizer steps that had been made, by its name."""
    return int(checkpoint.stem.removeprefix("step="))


def newest_checkpoint(folder: Path) -> Path:
    """The checkpoint of the latest step that verifies; each newer one that does not is named in a warning. Called by
    all processes.

    Raises:
        UserError: when there is none. A resume never becomes a silent fresh start.
    """
    found = as_one(partial(checkpoints, folder))[0]
    for path in reversed(found):
        if verifies(path):
            return path
        rank_zero_warn(f"{path}: damaged (digest does not match); trying the one before it")
    what = f"{len(found)} checkpoints, none of them intact" if found else "no checkpoint"
    raise UserError(f"{folder}: found {what}, expected at least one to go on from")


def set_aside(folder: Path, step: int) -> None:
    """Move checkpoints of later steps into `left/`, or the run that is gone on with from them next would be another one
    than that which goes on from `step`.
    """
    later = [path for path in checkpoints(folder) if step_of(path) > step]
    if not later:
        return
    aside = folder / "left"
    aside.mkdir(exist_ok=True)
    for path in [*later, *map(digest_path, later)]:
        if path.exists():
            discard(aside / path.name)
            path.rename(aside / path.name)
    steps = ", ".join(str(step_of(path)) for path in later)
    log.warning("going on from step %d; the checkpoints of later steps, %s, are now in %s", step, steps, aside)


def way_on(root: str | os.PathLike[str]) -> str:
    """What a run in this folder that has ended too early can be told to do: where nothing was saved there is nothing
    to go on from.
    """
    return "go on with --ckpt_path last" if checkpoints(Path(root) / "checkpoints") else "begin anew: nothing was saved"


class VerifiedCheckpointIO(TorchCheckpointIO):
    """Writes in place of the final name only what is complete, with its digest; reads only what verifies, and only
    plain data.

    Args:
        root: nothing is written outside of it; None for anywhere.
    """

    def __init__(self, root: Path | None = None) -> None:
        super().__init__()
        self.root = root

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write the file and its digest; the digest appears first, so a visible checkpoint can always be judged.

        Raises:
            UserError: a name, as it was filled in, leads out of the root; or what is to be written could not be read.
        """
        expect_plain(checkpoint, "")
        target = self.target(path)

        def write(temporary: Path) -> None:
            torch.save(checkpoint, temporary)
            digest = sha256_of(temporary)
            write_durably(digest_path(target), lambda file: file.write_text(digest + "\n"))

        if target.is_dir():  # of the same run in shards
            self.remove_checkpoint(target)
        write_durably(target, write)

    def target(self, path: str | os.PathLike[str]) -> Path:
        """Where a checkpoint of this name is written; the folder around it is there.

        Raises:
            UserError: it leads out of the root.
        """
        target = Path(path)
        if self.root is not None and not target.resolve().is_relative_to(self.root.resolve()):
            raise UserError(f"{target}: found a checkpoint's name, expected one below the run's folder, {self.root}")
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def load_checkpoint(
        self,
        path: Any,
        map_location: Any = None,
        weights_only: bool | None = None,
        mmap: bool = False,
        own: Callable[[Stored], Any] = Stored.whole,
    ) -> dict[str, Any]:
        """Read a verified checkpoint with `weights_only=True`, whatever the caller asked.

        Args:
            mmap: map the file into memory in place of a copy, for a caller that copies what it keeps.
            own: what the caller keeps of a tensor that lies in the shards of a folder.

        Raises:
            UserError: for a URL, a missing or damaged file, or one that holds more than plain data.
        """
        if "://" in str(path):
            raise UserError(f"{path}: a checkpoint is read from a local file only, expected a path")
        path = Path(path)
        if not path.exists():
            raise UserError(f"{path}: no such checkpoint")
        index = path / INDEX if path.is_dir() else path
        if digest_path(path).is_file() and not _matches(index, digest_path(path)):
            raise UserError(f"{path}: damaged, its digest does not match {digest_path(path).name}")
        try:
            if path.is_dir():
                return ShardFolder(path).load(own, mmap)
            to = map_location or ("cpu" if mmap else lambda storage, _: storage)
            return dict(torch.load(path, map_location=to, weights_only=True, mmap=mmap))
        except UserError:
            raise
        except Exception as error:  # a damaged archive surfaces as any of seven types
            raise UserError(f"{path}: not a checkpoint of plain data: {str(error).strip().splitlines()[0]}") from error

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Delete a checkpoint and its digest; one that cannot be deleted is a warning."""
        for file in (Path(path), digest_path(Path(path))):
            try:
                if file.is_dir():  # in parts: gone from sight at once
                    file = file.rename(temporary_for(file))
                discard(file)
            except OSError as error:
                rank_zero_warn(f"{file}: could not be deleted: {error}")


class ExactCheckpoint(Checkpoint):
    """Saves every n optimizer steps, at the last one, and when a signal asks the run to stop; keeps the newest few.

    On SIGTERM, SIGINT, SIGHUP or SIGUSR1 the step in flight is finished, with its validation if it has one, and saved;
    then the process exits with 128 + the signal's number. A second signal ends it at once.

    Args:
        every_n_steps: optimizer steps between checkpoints.
        keep: how many of the newest stay on disk; two at least, so that one may be damaged.
    """

    def __init__(self, every_n_steps: int = 200, keep: int = 2) -> None:
        expect_number("checkpoint.every_n_steps", every_n_steps, "[1, inf)", whole=True)
        expect_number("checkpoint.keep", keep, "[2, inf)", whole=True)
        self.every_n_steps = every_n_steps
        self.keep = keep
        self._requested: int | None = None
        self._step = -1
        self._left = False
        self._after_validation = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remove what a killed run left of writing a checkpoint, the export or the summary."""
        root = Path(trainer.default_root_dir)
        self.folder = root / "checkpoints"
        if trainer.is_global_zero and stage == "fit":
            for folder in (root, self.folder):
                clear_leftovers(folder / "*")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over the signals; Lightning restores the earlier handlers when the run ends. Set aside what is not of
        this run: the steps that another one made from here.

        Raises:
            UserError: what a callback keeps could not be read again.
        """
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            expect_plain(callback.state_dict(), f"callbacks: {callback.state_key}")
        self._step = trainer.global_step
        if trainer.is_global_zero:
            set_aside(self.folder, trainer.global_step)
        loop, epoch = trainer.fit_loop, trainer.fit_loop.epoch_progress.current
        if loop.restarted_mid_epoch and epoch.processed == epoch.ready:  # type: ignore[attr-defined]
            # The checkpoint was written at an epoch's last batch: what follows is a new epoch. Lightning takes it for
            # the rest of the old one and does not count it, and the next run that resumes trains an epoch too many.
            loop.reset_restart_stage()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
                signal.signal(number, self._request_stop)

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        if self._requested is not None:
            os._exit(128 + number)
        self._requested = number

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Save when due, never inside an accumulation window; leave when asked to."""
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        if not stepped:  # what is accumulated of the next step no checkpoint holds
            return
        last = self._is_last(trainer)  # what fails after it costs no training
        if not self._asked_to_stop(trainer) and not last and trainer.global_step % self.every_n_steps:
            return
        loop = trainer.fit_loop
        self._after_validation = loop.epoch_loop._should_check_val_fx(loop._data_fetcher)  # type: ignore[arg-type]
        if not self._after_validation:
            # Lightning logs the step only after this hook: a run killed between the two would leave a gap in the curve.
            trainer._logger_connector.update_train_step_metrics()
            self._save_and_leave(trainer)

    @staticmethod
    def _is_last(trainer: L.Trainer) -> bool:
        """Whether no step follows."""
        loop = trainer.fit_loop
        epochs = loop.epoch_progress.current.processed + loop.epoch_loop.batch_progress.is_last_batch  # type: ignore[attr-defined]
        return trainer.global_step == trainer.max_steps or epochs == trainer.max_epochs

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A step that is validated is saved here: a run that resumes from a step does not validate it again."""
        if self._after_validation:
            self._after_validation = False
            self._save_and_leave(trainer)

    def _asked_to_stop(self, trainer: L.Trainer) -> bool:
        stop = self._requested is not None
        if trainer.world_size > 1:  # one rank may have been signalled alone, and a save is collective
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        return stop

    def _save_and_leave(self, trainer: L.Trainer) -> None:
        self.save(trainer)
        if self._asked_to_stop(trainer):
            self._left = True
            raise SystemExit(128 + (self._requested or signal.SIGTERM))

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Say what is there of a run that was told to stop; until its first step `gpt` itself holds the signals."""
        if not isinstance(exception, SystemExit) or trainer.state.fn != "fit" or not (self._left or self._step < 0):
            return
        if isinstance(exception, Stopped):
            exception.told = True
        if trainer.is_global_zero:
            what = f"saved at step {trainer.global_step}" if self._left else "stopped before a step was made"
            log.warning("%s; %s", what, way_on(trainer.default_root_dir))

    def save(self, trainer: L.Trainer) -> None:
        """Write the checkpoint of this step, then drop the oldest beyond `keep`."""
        trainer.save_checkpoint(self.folder / f"step={trainer.global_step:08d}.ckpt")
        if trainer.is_global_zero:
            for old in checkpoints(self.folder)[: -self.keep]:
                trainer.strategy.remove_checkpoint(old)


class RandomState(L.Callback):
    """Stores the random state of torch, CUDA, numpy and Python of every rank, and puts it back before the first
    resumed step.
    """

    def __init__(self) -> None:
        self._pending: list[dict[str, Any]] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Each rank's state as plain data; a collective call under a distributed strategy."""
        kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
        version, internal, gauss = random.getstate()
        own: dict[str, Any] = {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if _uses_cuda() else None,
            "numpy": [kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached],
            "python": [version, list(internal), gauss],
        }
        ranks: list[Any] = [own]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            ranks = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(ranks, own)
        return {"ranks": ranks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until the first step: what happens before it draws numbers too.

        Raises:
            UserError: they are none; what else they may be raises as the generators do, before anything is restored.
        """
        ranks = state_dict["ranks"]
        expect(isinstance(ranks, list) and bool(ranks), "RandomState", type(ranks).__name__, "a state for each process")
        for own in ranks:
            _set_states(own, torch.Generator(), np.random.RandomState(), random.Random())
        self._pending = ranks

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Restore once."""
        if self._pending is None:
            return
        own = self._pending[trainer.global_rank % len(self._pending)]
        self._pending = None
        _set_states(own, torch.default_generator, np.random, random)
        if own["cuda"] is not None and _uses_cuda():
            torch.cuda.set_rng_state(own["cuda"].cpu())


def _uses_cuda() -> bool:
    """Whether the process has a CUDA device in use: to ask for a generator's state would take it into use."""
    found: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return found


def _set_states(own: dict[str, Any], of_torch: torch.Generator, of_numpy: Any, of_python: Any) -> None:
    """Put one process's states into generators."""
    of_torch.set_state(own["torch"].cpu())
    kind, keys, position, has_gauss, cached = own["numpy"]
    of_numpy.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, internal, gauss = own["python"]
    of_python.setstate((version, tuple(internal), gauss))
