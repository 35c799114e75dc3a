"""A recipe read and built by LightningCLI, with the checkpoints and guards that every run gets."""

import inspect
import json
import logging
import os
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as L
from jsonargparse import ArgumentError as RecipeError
from jsonargparse import ArgumentParser, get_loader, set_loader, set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from omegaconf.errors import OmegaConfBaseException

from gpt_modules.commands.parsing.complaints import complaint, shown, users_mistake
from gpt_modules.commands.parsing.composition import Composition, compose, expect_procedure
from gpt_modules.commands.parsing.key_help import key_help
from gpt_modules.commands.parsing.locating import check_nulls, constructed, located
from gpt_modules.commands.parsing.trainer_keys import (
    check_environment,
    check_sections,
    check_strategy,
    check_values,
    keep_whole_numbers,
    refused_callback,
)
from gpt_modules.commands.parsing.vocabulary import allow_only
from gpt_modules.commands.run_folder import (
    SavedRecipe,
    keep_inside,
)
from gpt_modules.data.arguments import IdleArgument
from gpt_modules.errors import UserError
from gpt_modules.storage.run_parts import expect_checkpoint
from gpt_modules.storage.yaml_files import Place, dotted, parse_yaml
from gpt_modules.training.callbacks.checkpointing import (
    ExactCheckpoint,
    RandomState,
)
from gpt_modules.training.callbacks.export import ExportBest
from gpt_modules.training.callbacks.gradients import FreedGradients
from gpt_modules.training.callbacks.guards import CoarseWeights, FiniteLossGuard, MonitorGuard
from gpt_modules.training.callbacks.peers import PeerWatch
from gpt_modules.training.callbacks.predictions import PredictionFile
from gpt_modules.training.callbacks.progress import StepBar
from gpt_modules.training.callbacks.rates import LearningRates
from gpt_modules.training.callbacks.resuming import Resumption
from gpt_modules.training.callbacks.samples import SAMPLES, SampleTable
from gpt_modules.training.callbacks.stalls import StallReport
from gpt_modules.training.callbacks.summary import RunSummary
from gpt_modules.training.callbacks.throughput import Throughput
from gpt_modules.training.callbacks.votes import VoteRecord

# Every run: no bar but ours, and a whole validation before the first step, which is the `before` of the summary.
TRAINER_DEFAULTS = {
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": -1,
    "log_every_n_steps": 10,
}
LONGEST_PATH, LONGEST_NAME = 1024, 255  # bytes that file systems allow, with room for the names below the folder


_NO_CHECKPOINTS = ("", "best", "hpc", "registry")  # words of Lightning's for what no run here has


CLIType = TypeVar("CLIType", bound="RecipeCLI")


class RecipeParser(LightningArgumentParser):
    """A parser for which a text is a value: none of its keys opens a file of that name."""

    def _add_signature_parameter(self, *args: Any, **options: Any) -> None:
        super()._add_signature_parameter(*args, **options | {"sub_configs": False})


class RecipeCLI(LightningCLI):
    """Reads a recipe and builds what it names: adds our callbacks as its keys, keeps a checkpoint's hyper-parameters
    out of it, and tells a mistake in one line. What is then done with it, a subclass says.
    """

    def __init__(self, recipe: Composition, subcommand: str, **options: Any) -> None:
        self.recipe = recipe
        self.left_out: list[str] = []
        every = self.subcommands()  # a parser takes a second to build: one is enough
        self.subcommands = lambda: {subcommand: every[subcommand]}  # type: ignore[method-assign]
        words = [*recipe.asked, *(["--help"] if recipe.help == ["all"] else [])]
        try:
            super().__init__(args=[subcommand, f"--config={json.dumps(recipe.values)}", *words], **options)
        except UserError as error:
            raise located(error, recipe) from error

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Recipe keys beside `model`, `data` and `trainer`."""
        parser.add_lightning_class_args(ExactCheckpoint, "checkpoint")
        parser.add_lightning_class_args(ExportBest, "export")
        parser.add_lightning_class_args(SampleTable, "samples")
        parser.add_lightning_class_args(Throughput, "throughput")
        parser.add_lightning_class_args(StepBar, "progress")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the recipe, and tell what is wrong with it in one line."""
        if self.recipe.help is not None and self.recipe.help != ["all"]:
            topic = self.recipe.help[0] if self.recipe.help else None
            sys.stdout.write(key_help(topic, self.recipe, self._subcommand_parsers[args[0]]) + "\n")
            sys.exit(0)
        check_sections(self.recipe)
        try:
            self.config = parser.parse_args(args)
        except (ArgumentError, RecipeError, OmegaConfBaseException, RecursionError) as error:
            raise complaint(error, self.recipe, self._subcommand_parsers[args[0]]) from error
        keep_whole_numbers(self.config[args[0]], self.recipe)
        check_values(self.config[args[0]].as_dict(), self.recipe)
        check_nulls(self.config[args[0]].as_dict(), self.recipe)

    def _parse_ckpt_path(self) -> None:
        """Lightning would let a checkpoint's hyper-parameters override the recipe and the command line, the model's
        class included.
        """

    def before_instantiate_classes(self) -> None:
        """What the types of the keys do not say."""
        config = self.config[self.subcommand]
        check_environment()
        root = config["trainer"]["default_root_dir"]
        if not root:
            where = self.recipe.where(("trainer", "default_root_dir"))
            raise UserError(f"{where}: found nothing, expected the run's folder")
        if (
            "\0" in root
            or len(os.fsencode(root)) > LONGEST_PATH
            or any(len(os.fsencode(part)) > LONGEST_NAME for part in Path(root).parts)
        ):
            where = self.recipe.where(("trainer", "default_root_dir"))
            raise UserError(f"{where}: found {shown(root)}, expected a name that a folder can have")
        if (told := config.get("ckpt_path")) is not None and str(told) in _NO_CHECKPOINTS:
            where = self.recipe.where(("ckpt_path",))
            raise UserError(f"{where}: found {str(told)!r}, expected last, or the path of a checkpoint")
        if told not in (None, "last") and "://" not in str(told):  # which its reader refuses
            expect_checkpoint(Path(told), self.recipe.where(("ckpt_path",)))
        trainer = config["trainer"].as_dict()
        keep_inside(Path(root), trainer, self.recipe)
        check_strategy(trainer.get("strategy"), self.recipe)
        self._leave_out_samples()
        self._leave_out_model()

    def instantiate_classes(self) -> None:
        """The parser wraps what a constructor raises in pages about unions: bring the user's mistake back out."""
        try:
            super().instantiate_classes()
        except (UserError, ValueError) as error:
            cause = users_mistake(error)
            if cause is None:
                raise refused_callback(self.config[self.subcommand].as_dict(), self.recipe) or error from error
            if not isinstance(cause, IdleArgument) or not self._without(cause):
                raise cause from None
            self.instantiate_classes()

    def _without(self, idle: IdleArgument) -> bool:
        """Leave out what a recipe says of its own data, where other data were named after it, and tell so."""
        place, other = (("data", "init_args", *name.split(".")) for name in (idle.name, idle.other))
        return self._leave_out(place, other, idle.default, idle.found)

    def _leave_out(self, place: Place, other: Place, default: object, found: str) -> bool:
        if not self.recipe.overrules(other, place) or self.recipe.at(place) is None:
            return False
        self.config[self.subcommand][".".join(map(str, place))] = default
        self.left_out.append(f"{self.recipe.where(place)}: left out: {found}")
        return True

    def _leave_out_samples(self) -> None:
        """The samples that a recipe asks for, where they were turned off after it."""
        config = self.config[self.subcommand].as_dict()
        if config["samples"]["enabled"]:
            return
        for place, kind, values in constructed(config):
            known = inspect.signature(kind).parameters
            names = SAMPLES if set(SAMPLES) <= set(known) else SAMPLES[:1]  # a seed beside others is of more than these
            for name in names if place[0] == "model" and SAMPLES[0] in known else ():
                found = f"{values.get(name)!r:.60} beside samples.enabled false, where it has no effect"
                if values.get(name) != known[name].default:
                    self._leave_out((*place, name), ("samples", "enabled"), known[name].default, found)

    def _leave_out_model(self) -> None:
        """A recipe's sizes of a new model, where a folder to begin from was named after them, or the other way round;
        where one says both, nobody knows which is meant.
        """
        new, folder = (("model", "init_args", name) for name in ("config", "init_from"))
        config = self.config[self.subcommand]
        if None in (config.get(".".join(place)) for place in (new, folder)):
            return
        for place, other in ((new, folder), (folder, new)):
            self._leave_out(place, other, None, f"found beside {dotted(other)}, which was named after it")


def _texts_are_yaml_of_recipes() -> None:
    """What a text of the command line means to a key that is no text: what it would mean in a recipe."""

    def read(text: str) -> Any:
        value = parse_yaml(text, "value")[0]
        return loads(text) if isinstance(value, dict) else value  # which makes interpolations relative

    ArgumentParser(parser_mode="omegaconf+", exit_on_error=False).parse_string("{}")  # its loader is made when used
    loads = get_loader("omegaconf+")
    set_loader("omegaconf+", read, (UserError,))
    set_loader("yaml", lambda text: parse_yaml(text, "value")[0], (UserError,))


_texts_are_yaml_of_recipes()


class RecipeReader(RecipeCLI):
    """Parses, and does nothing else."""

    def _set_seed(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        """None is."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def parse_recipe(words: list[str]) -> dict[str, Any]:
    """Every key of a recipe with its value, those that nobody has set among them; nothing is built or run.

    Raises:
        UserError: for anything that does not parse, in one line.
    """
    arguments = sys.argv
    try:
        recipe: dict[str, Any] = open_recipe(RecipeReader, "fit", words).config["fit"].as_dict()
    finally:
        sys.argv = arguments
    return recipe


def open_recipe(
    kind: Callable[..., CLIType], subcommand: str, words: list[str], command: list[str] | None = None
) -> CLIType:
    """Build, and run, what the words describe; `kind` says how.

    Args:
        command: what the other processes of a run are started with, in place of the subcommand and its words.

    Raises:
        UserError: for anything wrong with it, in one line.
    """
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning calls what 5.0 removes
    recipe = compose(words)
    expect_procedure(recipe)
    allow_only(recipe.allowed)
    for name in ("lightning.pytorch", "lightning.fabric"):  # devices, tips and "max_steps reached" at every start
        logging.getLogger(name).setLevel(logging.WARNING)
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    warnings.filterwarnings("ignore", ".*AMP with fp16 is not supported on CPU")  # which `check_precision` refuses
    warnings.filterwarnings("ignore", "The number of training batches")  # a short run shows its end, whatever it logs
    warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)  # Lightning 2.6 asks torch 2.13 in the old way
    sys.argv = [sys.argv[0], *(command or [subcommand, *words])]  # Lightning's launcher starts the other ranks with it
    guards: list[L.Callback] = [
        Resumption(),
        RandomState(),
        FiniteLossGuard(),
        MonitorGuard(),
        CoarseWeights(),
        PeerWatch(),
        StallReport(),
    ]
    mode = {"parser_mode": "omegaconf+", "exit_on_error": False}
    return kind(
        recipe,
        subcommand,
        model_class=L.LightningModule,
        datamodule_class=L.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        save_config_callback=SavedRecipe,
        trainer_defaults={
            **TRAINER_DEFAULTS,
            "callbacks": [*guards, LearningRates(), FreedGradients(), VoteRecord(), RunSummary(), PredictionFile()],
        },
        parser_class=RecipeParser,
        parser_kwargs={"prog": "gpt", **mode, subcommand: mode},
        seed_everything_default=0,
    )
