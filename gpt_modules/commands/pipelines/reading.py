"""A pipeline's file, read and checked whole, with the recipes that it names."""

from dataclasses import replace
from pathlib import Path

from gpt_modules.commands.pipelines.document import Pipeline, Stage
from gpt_modules.commands.pipelines.steps import steps_of
from gpt_modules.errors import UserError
from gpt_modules.storage.documents import document_of
from gpt_modules.storage.recipes import find_recipe, read_recipe


def read_pipeline(path: Path, root: str | None = None) -> Pipeline:
    """The pipeline in a file, its recipes found.

    Args:
        root: in place of the file's.

    Raises:
        UserError: one line with the file and the key.
    """
    pipeline = document_of(path, Pipeline, read_recipe(path) | ({} if root is None else {"root": root}))
    try:
        steps_of(pipeline)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    stages = [_found(path, f"stages[{number}]", stage) for number, stage in enumerate(pipeline.stages, 1)]
    in_rounds = [_found(path, f"round[{number}]", stage) for number, stage in enumerate(pipeline.round, 1)]
    return replace(pipeline, stages=stages, round=in_rounds)


def _found(path: Path, where: str, stage: Stage) -> Stage:
    """A stage with the files of its recipes, each of which is one."""
    if stage.config is None:
        return stage
    found = []
    for name in stage.recipes:
        try:
            found.append(find_recipe(name, beside=path))
            read_recipe(found[-1])
        except UserError as error:
            raise UserError(f"{path}: {where}.config: {error}") from error
    return replace(stage, config=list(map(str, found)))
