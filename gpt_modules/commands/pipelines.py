"""A pipeline's file: stages in order, each a recipe that reads what earlier ones exported."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from gpt_modules.errors import UserError
from gpt_modules.storage.documents import FileName, Positive, Rule, at, document_of
from gpt_modules.storage.json_files import shown
from gpt_modules.storage.paths import path_of
from gpt_modules.storage.recipes import find_recipe, read_recipe

ROOT_KEY = "trainer.default_root_dir"
_KEY = re.compile(r"[A-Za-z_]\w*(\.\w+)*\+?")
_TAKEN = (ROOT_KEY, "ckpt_path", "config")  # what the pipeline itself says

Text = Annotated[str, Rule(bool, "text that is not empty")]
Recipe = Annotated[str, Rule(lambda name: name and name.isprintable(), "the path or the name of a recipe")]
Recipes = Annotated[list[Recipe], Rule(bool, "at least one recipe")]


@dataclass(frozen=True)
class Stage:
    """One recipe of a pipeline.

    Args:
        name: the stage's folder under the pipeline's root.
        config: a recipe, or several of which later ones win: paths, files beside the pipeline's, or names.
        feeds: recipe key -> name of an earlier stage whose exported folder it is set to.
        set: recipe key -> value, as on the command line.
        metrics: validation metrics that the closing table shows, before and after.
    """

    name: FileName
    config: Recipe | Recipes
    feeds: dict[str, str] = field(default_factory=dict)
    set: dict[str, Any] = field(default_factory=dict)
    metrics: list[Text] = field(default_factory=list)

    def __post_init__(self) -> None:
        for where, key in [("feeds", key) for key in self.feeds] + [("set", key) for key in self.set]:
            below = _below(key, self.set[key] if where == "set" else None)
            if not _KEY.fullmatch(key) or any(name.rstrip("+") in _TAKEN for name in below):
                raise UserError(f"{at(where, key)}: found this key, expected one of the recipe, other than "
                                f"{', '.join(_TAKEN)}")  # fmt: skip

    @property
    def recipes(self) -> list[str]:
        """The recipes, one or several."""
        return [self.config] if isinstance(self.config, str) else self.config


@dataclass(frozen=True)
class Pipeline:
    """A pipeline file.

    Args:
        root: where the stages' folders go.
        stages: in order.
        prompts: what the language models of the stages are asked at the end.
        sample_tokens: longest answer shown.
    """

    root: Annotated[Path, Rule(lambda path: str(path) != ".", "a folder to write into")]
    stages: Annotated[list[Stage], Rule(bool, "at least one stage")]
    prompts: list[Text] = field(default_factory=list)
    sample_tokens: Positive = 40

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", path_of(self.root))
        for number, stage in enumerate(self.stages):
            earlier = [other.name for other in self.stages[:number]]
            where = f"stages[{number + 1}]"
            if stage.name in earlier:
                raise UserError(f"{where}.name: found {shown(stage.name)}, expected a name that no earlier stage has")
            for key, source in stage.feeds.items():
                if source not in earlier:
                    expected = ", ".join(earlier) or "none"
                    raise UserError(
                        f"{at(f'{where}.feeds', key)}: found {shown(source)}, expected an earlier stage: {expected}"
                    )

    def folder(self, stage: Stage) -> Path:
        """Where a stage writes."""
        return self.root / stage.name

    def export(self, name: str) -> Path:
        """A stage's artefact."""
        return self.root / name / "export"


def _below(key: str, value: Any) -> Iterator[str]:
    """A key and those of the mappings that are its value."""
    yield key
    for name, item in value.items() if isinstance(value, dict) else ():
        yield from _below(f"{key}.{name}", item)


def read_pipeline(path: Path, root: str | None = None) -> Pipeline:
    """The pipeline in a file, its recipes found.

    Args:
        root: in place of the file's.

    Raises:
        UserError: one line with the file and the key.
    """
    pipeline = document_of(path, Pipeline, read_recipe(path) | ({} if root is None else {"root": root}))
    stages = [replace(stage, config=_found(path, number, stage)) for number, stage in enumerate(pipeline.stages, 1)]
    return replace(pipeline, stages=stages)


def _found(path: Path, number: int, stage: Stage) -> list[str]:
    """The files of a stage's recipes, each of which is one."""
    found = []
    for name in stage.recipes:
        try:
            found.append(find_recipe(name, beside=path))
            read_recipe(found[-1])
        except UserError as error:
            raise UserError(f"{path}: stages[{number}].config: {error}") from error
    return list(map(str, found))


def stage_words(
    pipeline: Pipeline, stage: Stage, overlays: Sequence[str] = (), allowed: Sequence[str] = ()
) -> list[str]:
    """The stage as words of `gpt fit`.

    Args:
        overlays: recipes laid over every stage.
        allowed: packages that recipes may name.
    """
    words = [word for recipe in [*stage.recipes, *overlays] for word in ("--config", recipe)]
    words += [f"--allow={package}" for package in allowed]
    words += [f"--{ROOT_KEY}={pipeline.folder(stage)}"]
    words += [f"--{key}={pipeline.export(source)}" for key, source in stage.feeds.items()]
    return words + [
        f"--{key}={json.dumps(value) if not isinstance(value, str) else value}" for key, value in stage.set.items()
    ]
