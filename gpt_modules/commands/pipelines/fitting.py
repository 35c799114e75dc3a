"""A recipe as a step of a pipeline."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_modules.commands.pipelines.document import ROOT_KEY, Pipeline
from gpt_modules.commands.pipelines.plan import Plan, check_kind, check_made
from gpt_modules.commands.pipelines.steps import EXPORT, Step
from gpt_modules.errors import UserError
from gpt_modules.storage.summary import read_summary

if TYPE_CHECKING:
    from gpt_modules.backbone.folders.weightmap import Kind

KINDS_OF_PPO: "dict[str, Kind]" = {"init_from": "gpt", "reference_from": "gpt", "rewards": "reward"}


class FitPlan(Plan):
    """A run of `gpt fit`.

    Args:
        overlays: recipes laid over it.
        allowed: packages that recipes may name.
    """

    def __init__(
        self, step: Step, pipeline: Pipeline, overlays: Sequence[str] = (), allowed: Sequence[str] = ()
    ) -> None:
        from gpt_modules.commands.recipe_cli import parse_recipe

        super().__init__(step)
        self.pipeline = pipeline
        self.fit_words = fit_words(step, overlays, allowed)
        self.recipe: dict[str, Any] = parse_recipe(self.fit_words)
        """Every key with its value, those that no recipe names among them."""

    @property
    def cut_off(self) -> bool:
        return any((self.step.folder / "checkpoints").glob("step=*.ckpt"))

    @property
    def title(self) -> str:
        return ", ".join(self.step.stage.recipes)

    @property
    def made_from(self) -> Mapping[str, Any]:
        return self.recipe

    @property
    def beside(self) -> list[str]:
        model = self.recipe.get("model", {})
        if not str(model.get("class_path")).endswith("PPOModule"):
            return []
        arguments = model.get("init_args") or {}
        made = {
            "critic": (arguments.get("estimator") or {}).get("name", "gae") == "gae",
            "ema": (arguments.get("ema") or {}).get("export") == "beside",
        }
        return [f"{EXPORT}-{name}" for name, one in made.items() if one]

    def check(self) -> None:
        self._check_folder()
        self._check_data()
        self._check_models()
        self._check_samples()

    def _check_folder(self) -> None:
        """However a step says its keys, it writes where the pipeline looks."""
        found, expected = self.recipe["trainer"]["default_root_dir"], str(self.step.folder)
        if found != expected:
            raise UserError(f"{ROOT_KEY}: found {found!r}, expected the pipeline's own {expected!r}: set no other")

    def _check_data(self) -> None:
        from gpt_modules.data.rows.files import find_files, is_local

        for item in _sources(self.recipe.get("data", {}).get("init_args") or {}):
            if is_local(item) and not Path(item).is_dir() and self.step.root not in Path(item).parents:
                find_files(item)

    def _check_models(self) -> None:
        """What PPO reads of folders that are there already is what it can use."""
        arguments = self.recipe.get("model", {}).get("init_args") or {}
        for key, kind in KINDS_OF_PPO.items() if KINDS_OF_PPO.keys() <= arguments.keys() else ():
            if isinstance(folder := arguments[key], str):
                check_kind(f"model.{key}", folder, kind)

    def _check_samples(self) -> None:
        config = (self.recipe.get("model", {}).get("init_args") or {}).get("config")
        room, most = config.get("n_positions") if isinstance(config, dict) else None, self.pipeline.sample_tokens
        if self.pipeline.prompts and isinstance(room, int) and most >= room:
            raise UserError(f"sample_tokens: found {most}, expected fewer than the model's {room}")

    def begin(self) -> None:
        """Not beside a run that still writes there, such as one whose `gpt run` was killed."""
        from gpt_modules.commands.run_folder import lock

        with lock(self.step.folder):
            super().begin()

    def words(self) -> list[str]:
        """The process reads the files again, hours after they were checked; what it was made from is written down as
        they were.
        """
        from gpt_modules.commands.recipe_cli import parse_recipe

        if parse_recipe(self.fit_words) != self.recipe:
            found = "found its recipe changed since gpt run began, expected it to stay as it is"
            raise UserError(f"stage {self.step.name}: {found}; the same command goes on from here with the new one")
        return ["fit", *self.fit_words, *(["--ckpt_path", "last"] if self.cut_off else [])]

    def finish(self, seconds: float) -> None:
        read_summary(self.step.folder)
        check_made(self.step.artefact)


def fit_words(step: Step, overlays: Sequence[str] = (), allowed: Sequence[str] = ()) -> list[str]:
    """The step as words of `gpt fit`."""
    words = [word for recipe in [*step.stage.recipes, *overlays] for word in ("--config", recipe)]
    words += [f"--allow={package}" for package in allowed]
    words += [f"--{ROOT_KEY}={step.folder}"]
    fed = {key: [str(path) for path in paths] for key, paths in step.sources.items()}
    one = [key for key, of in step.stage.feeds.items() if isinstance(of, str)]  # another list is one, however short
    values = {key: paths[0] if key in one else paths for key, paths in fed.items()} | step.stage.set
    return words + [
        f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()
    ]


def _sources(arguments: Mapping[str, Any]) -> Iterator[str]:
    """What a DataModule's arguments name to be read, those of the text beside and of mixtures among them."""
    for key in ("train", "validation", "test", "demonstrations"):
        yield from _texts(arguments.get(key))
    for mixed in arguments.get("mixture") or []:
        yield from _texts(mixed["source"])
    if beside := arguments.get("pretraining"):
        yield from _sources(beside)


def _texts(value: Any) -> Iterator[str]:
    yield from (item for item in (value if isinstance(value, list | tuple) else [value]) if isinstance(item, str))
