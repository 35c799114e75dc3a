"""`gpt fit|validate|test|predict`: LightningCLI on recipes, with the checkpoints and guards that every run gets."""

import fcntl
import json
import logging
import os
import re
import sys
import warnings
from argparse import ArgumentError
from pathlib import Path
from typing import IO, Any

import lightning.pytorch as L
from jsonargparse import ArgumentError as RecipeError
from jsonargparse import set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf.errors import OmegaConfBaseException

from gpt_modules.backbone import FeedForward
from gpt_modules.data import (
    EpisodicDataModule,
    FinetuningDataModule,
    PPODataModule,
    PretrainingDataModule,
    RewardDataModule,
    SFTDataModule,
)
from gpt_modules.data.episodes.arithmetic_and_words import SyntheticTasks
from gpt_modules.data.episodes.ciphers import AffineCipher, SubstitutionCipher
from gpt_modules.data.episodes.cloze import Cloze
from gpt_modules.data.episodes.label_words import LabelWords
from gpt_modules.data.episodes.sinusoid import Sinusoid
from gpt_modules.data.episodes.transforms import SequenceTransforms
from gpt_modules.data.episodes.ways import LabelledClasses
from gpt_modules.errors import UserError
from gpt_modules.evaluation import (
    AdaptationCurves,
    BagOfWordsBaseline,
    FewShot,
    NaiveBayesBaseline,
    NgramBaseline,
    ZeroShotProbes,
)
from gpt_modules.training import (
    FinetuningModule,
    MAMLModule,
    PPOModule,
    PretrainingModule,
    RewardModule,
    SFTModule,
)
from gpt_modules.training.callbacks.checkpointing import (
    ExactCheckpoint,
    RandomState,
    VerifiedCheckpointIO,
    newest_checkpoint,
)
from gpt_modules.training.callbacks.dashboard import RunLogger
from gpt_modules.training.callbacks.export import ExportBest
from gpt_modules.training.callbacks.guards import FiniteLossGuard
from gpt_modules.training.callbacks.predictions import PredictionFile
from gpt_modules.training.callbacks.progress import StepBar
from gpt_modules.training.callbacks.resuming import Resumption
from gpt_modules.training.callbacks.samples import SampleTable
from gpt_modules.training.callbacks.summary import RunSummary
from gpt_modules.training.callbacks.throughput import Throughput

# Imported so that a recipe may write `class_path: SFTModule`: the parser finds what has been imported by its short
# name.
MODULES = (PretrainingModule, FinetuningModule, SFTModule, RewardModule, PPOModule, MAMLModule)
CALLBACKS = (AdaptationCurves, NgramBaseline, BagOfWordsBaseline, NaiveBayesBaseline, ZeroShotProbes, FewShot)
DATA_MODULES = (
    PretrainingDataModule,
    FinetuningDataModule,
    SFTDataModule,
    RewardDataModule,
    PPODataModule,
    EpisodicDataModule,
)
NETWORKS = (FeedForward,)
FAMILIES = (
    AffineCipher,
    Cloze,
    LabelWords,
    LabelledClasses,
    SequenceTransforms,
    Sinusoid,
    SubstitutionCipher,
    SyntheticTasks,
)

# Every run: no bar but ours, and a whole validation before the first step, which is the `before` of the summary.
TRAINER_DEFAULTS = {
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": -1,
    "log_every_n_steps": 10,
}


class SavedRecipe(SaveConfigCallback):
    """Writes `<root>/config.yaml`, without the checkpoint to go on from: the file is the recipe, and runs again."""

    def __init__(self, parser: LightningArgumentParser, config: Any, **options: Any) -> None:
        config = config.clone()
        config["ckpt_path"] = None
        super().__init__(parser, config, **options)


class TrainerCLI(LightningCLI):
    """Adds our callbacks as recipe keys, keeps a checkpoint's hyper-parameters out of the recipe, and resumes only
    what verifies.
    """

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Recipe keys beside `model`, `data` and `trainer`."""
        parser.add_lightning_class_args(ExactCheckpoint, "checkpoint")
        parser.add_lightning_class_args(ExportBest, "export")
        parser.add_lightning_class_args(SampleTable, "samples")
        parser.add_lightning_class_args(Throughput, "throughput")
        parser.add_lightning_class_args(StepBar, "progress")

    def _parse_ckpt_path(self) -> None:
        """Lightning would let a checkpoint's hyper-parameters override the recipe and the command line, the model's
        class included.
        """

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """A fixed run directory, TensorBoard in it, verified checkpoints."""
        config = self._get(self.config_init, "trainer")
        root = config.get("default_root_dir")
        if not root:
            raise UserError("trainer.default_root_dir: not given, expected the run's folder")
        if config.get("logger") in (None, True):
            kwargs["logger"] = RunLogger(save_dir=root, name="", version="", default_hp_metric=False)
        plugins = config.get("plugins") or []
        kwargs["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), VerifiedCheckpointIO()]
        return super().instantiate_trainer(**kwargs)

    def _run_subcommand(self, subcommand: str) -> None:
        world = int(os.environ.get("WORLD_SIZE", self.trainer.world_size))  # set by torchrun and the like
        if world != self.trainer.world_size:
            raise UserError(
                f"trainer: found devices x num_nodes = {self.trainer.world_size}, expected the launcher's {world}: "
                "independent copies would write into one run"
            )
        told = json.loads(json.dumps(self.config[subcommand].as_dict(), default=str))
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Resumption):
                callback.recipe = told
        super()._run_subcommand(subcommand)

    def instantiate_classes(self) -> None:
        """The parser wraps what a constructor raises in pages about unions: bring the user's mistake back out."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, UserError):
                cause = cause.__cause__ or cause.__context__
            raise cause or error from None

    def _resolve_last(self) -> None:
        """`--ckpt_path last` is the newest checkpoint of the run's folder that verifies."""
        if self.config[self.subcommand].get("ckpt_path") == "last":
            folder = Path(self.trainer.default_root_dir) / "checkpoints"
            self.config_init[self.subcommand]["ckpt_path"] = newest_checkpoint(folder)

    before_validate = before_test = before_predict = _resolve_last

    def before_fit(self) -> None:
        """Resolve `--ckpt_path last`, and refuse to begin anew in a folder that holds a run."""
        root = Path(self.trainer.default_root_dir)
        if self.trainer.is_global_zero:
            self._lock = lock(root)
        self._resolve_last()
        if self.config[self.subcommand].get("ckpt_path") is None and any((root / "checkpoints").glob("step=*.ckpt")):
            raise UserError(
                f"{root}: holds the checkpoints of an earlier run; go on with --ckpt_path last, or name another "
                "--trainer.default_root_dir, or remove the folder"
            )


def run_trainer(subcommand: str, words: list[str]) -> None:
    """Parse the recipes and run one of Lightning's subcommands.

    Raises:
        UserError: for anything wrong with a recipe, in one line.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):  # devices, tips and "max_steps reached" at every start
        logging.getLogger(name).setLevel(logging.WARNING)
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    usage = {
        name: {"parser_mode": "omegaconf+", "exit_on_error": False} for name in ("fit", "validate", "test", "predict")
    }
    warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)  # Lightning 2.6 asks torch 2.13 in the old way
    sys.argv = [sys.argv[0], subcommand, *words]  # Lightning's launcher starts the other ranks with it
    try:
        TrainerCLI(
            L.LightningModule,
            L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=SavedRecipe,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={
                **TRAINER_DEFAULTS,
                "callbacks": [Resumption(), RandomState(), FiniteLossGuard(), RunSummary(), PredictionFile()],
            },
            parser_kwargs={"prog": "gpt", "parser_mode": "omegaconf+", "exit_on_error": False, **usage},
            seed_everything_default=0,
        )
    except (ArgumentError, RecipeError, OmegaConfBaseException, MisconfigurationException) as error:
        raise UserError(one_line(str(error))) from error
    except SIGTERMException:
        sys.exit(143)


def one_line(message: str) -> str:
    """The innermost complaint of a parser message that repeats its context on many lines."""
    lines = [line.strip(" -") for line in message.splitlines() if line.strip(" -")]
    return re.sub(r"\s+", " ", " ".join(lines))


def lock(root: Path) -> IO[str]:
    """Hold the run's folder for this process; the kernel releases it, however the process ends.

    Raises:
        UserError: when another process writes there.
    """
    root.mkdir(parents=True, exist_ok=True)
    file = (root / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise UserError(
            f"{root}: another run writes here; wait for it or name another --trainer.default_root_dir"
        ) from error
    return file
