"""`gpt fit|validate|test|predict`: a recipe's run, in a folder of its own, with checkpoints that verify."""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.exceptions import SIGTERMException

from gpt_modules import one_voice
from gpt_modules.commands.parsing.trainer_keys import (
    check_precision,
    check_processes,
    refuse_half_weights,
    refused_key,
    refused_later,
)
from gpt_modules.commands.recipe_cli import RecipeCLI, open_recipe
from gpt_modules.commands.run_folder import (
    SavedRecipe,
    begin_anew,
    leave_nothing,
    lock,
    missing,
    weights_of,
)
from gpt_modules.errors import UserError
from gpt_modules.training.callbacks.checkpointing import (
    VerifiedCheckpointIO,
    checkpoints,
    newest_checkpoint,
)
from gpt_modules.training.callbacks.dashboard import RunLogger
from gpt_modules.training.callbacks.export import ExportBest
from gpt_modules.training.callbacks.forks import ForksEnd
from gpt_modules.training.callbacks.peers import leave_with, lost_peer, of_lost_peer
from gpt_modules.training.callbacks.resuming import NEWEST, Resumption


class TrainerCLI(RecipeCLI):
    """Runs what it has built, and resumes only what verifies."""

    def __init__(self, *given: Any, **options: Any) -> None:
        self._made: list[Path] = []
        if (launcher := one_voice.launcher()) is not None:
            leave_with(launcher)
        super().__init__(*given, **options)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """A fixed run directory, TensorBoard in it, verified checkpoints. Only training writes into it."""
        config = self._get(self.config_init, "trainer")
        if self.subcommand != "fit":
            kwargs["logger"], self.save_config_callback = False, None
        elif config.get("logger") in (None, True):
            root = config["default_root_dir"]
            kwargs["logger"] = RunLogger(save_dir=root, name="", version="", default_hp_metric=False)
        plugins = config.get("plugins") or []
        kwargs["plugins"] = [
            *(plugins if isinstance(plugins, list) else [plugins]),
            VerifiedCheckpointIO(Path(config["default_root_dir"])),
        ]
        return super().instantiate_trainer(**kwargs)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[L.Callback]) -> L.Trainer:
        try:
            trainer = super()._instantiate_trainer(dict(config), callbacks)
        except UserError:
            raise
        except Exception as error:  # Lightning and torch raise some ten types for a value that does not fit
            raise refused_key(error, config, lambda given: L.Trainer(**given), self.recipe) from error
        trainer.callbacks.insert(0, ForksEnd())  # type: ignore[attr-defined]
        check_processes(trainer, self.recipe)
        check_precision(trainer, config.get("precision"), self.recipe)
        if self.subcommand == "fit":
            refuse_half_weights(trainer, self.recipe)
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            self._run(subcommand)
        except Exception as error:
            several = dist.is_available() and dist.is_initialized()
            if several and one_voice.is_told(telling=isinstance(error, UserError)):
                sys.exit(2)
            if several and subcommand == "fit" and of_lost_peer(error):
                gone = "a process of this run has ended, or its connection"
                raise UserError(lost_peer(gone, self.trainer.default_root_dir)) from error
            if not several and isinstance(error, UserError):
                leave_nothing(Path(self.trainer.default_root_dir), self._made)
            raise

    def _run(self, subcommand: str) -> None:
        if not self.trainer.is_global_zero:  # of the data and the weights each process finds the same
            logging.getLogger("gpt_modules").setLevel(logging.ERROR)
        for name, path in self.recipe.configs:
            if Path(name) != path and self.trainer.is_global_zero:
                sys.stdout.write(f"{name}: {path}\n")
        if self.trainer.is_global_zero:
            sys.stdout.writelines(f"{line}\n" for line in self.left_out)
        asked = self.trainer.num_devices * self.trainer.num_nodes
        world = int(os.environ.get("WORLD_SIZE", asked))  # set by torchrun and the like
        if world != asked:
            why = "independent copies would write into one run" if world > asked else "the others are not there"
            expected = f"the launcher's {world}, {launched(world)}"
            raise UserError(f"trainer: found devices x num_nodes = {asked}, expected {expected}: {why}")
        told = json.loads(json.dumps(self.config[subcommand].as_dict(), default=str))
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Resumption):
                callback.recipe = told
            if isinstance(callback, ExportBest):
                callback.recipe = ", ".join(name for name, _ in self.recipe.configs) or None
        try:
            super()._run_subcommand(subcommand)
        except (MisconfigurationException, ValueError, TypeError) as error:
            if (refused := refused_later(error, self.recipe)) is not None:
                raise refused from error
            raise

    def _resolve_last(self) -> None:
        """`--ckpt_path last` is the newest checkpoint of the run's folder that verifies; several processes share the
        reading once they have met.
        """
        if self.config[self.subcommand].get("ckpt_path") == "last":
            folder = Path(self.trainer.default_root_dir) / "checkpoints"
            later = self.subcommand == "fit" and self.trainer.world_size > 1 and checkpoints(folder)
            self.config_init[self.subcommand]["ckpt_path"] = folder / NEWEST if later else newest_checkpoint(folder)

    def _measure(self) -> None:
        """Resolve `--ckpt_path last`, and say whose weights are measured. Lightning's own table is for a loader a
        column, and cuts names: `_tell_metrics` is in its place.
        """
        self._resolve_last()
        given = self.config_init[self.subcommand]
        checkpoint, self._verbose = given.get("ckpt_path"), given.get("verbose")
        if self._verbose is not None:
            given["verbose"] = False
        init_from = self.model.hparams.get("init_from")
        weights = weights_of(Path(self.trainer.default_root_dir), checkpoint, init_from)
        if self.trainer.is_global_zero:
            sys.stdout.write(f"weights: {weights}\n")

    before_validate = before_test = before_predict = _measure

    def _tell_metrics(self) -> None:
        """Each once and whole, however many loaders it was measured on."""
        numbers = self.trainer.callback_metrics if self._verbose and self.trainer.is_global_zero else {}
        width = max(map(len, numbers), default=0)
        sys.stdout.writelines(f"{name:{width}}  {float(value):.6g}\n" for name, value in numbers.items())

    after_validate = after_test = _tell_metrics

    def before_fit(self) -> None:
        """Resolve `--ckpt_path last`, and refuse to begin anew in a folder that holds a run."""
        root = Path(self.trainer.default_root_dir)
        if self.trainer.is_global_zero:
            self._made = missing(root)
            self._lock = lock(root)
        self._resolve_last()
        if self.config[self.subcommand].get("ckpt_path") is None and self.trainer.is_global_zero:
            config, parser = self.config[self.subcommand], self._parser(self.subcommand)
            begin_anew(root, lambda: SavedRecipe(parser, config).text)


def launched(world: int) -> str:
    """The processes that a launcher has started as a recipe says them: those of each machine, and how many machines."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    machines = f" --trainer.num_nodes {world // local}" if local < world else ""
    return f"--trainer.devices {local}{machines}"


def run_trainer(subcommand: str, words: list[str]) -> None:
    """Run one of Lightning's subcommands on the recipe that the words describe.

    Raises:
        UserError: for anything wrong with it, in one line.
    """
    try:
        open_recipe(TrainerCLI, subcommand, words)
    except SIGTERMException:
        sys.exit(143)
