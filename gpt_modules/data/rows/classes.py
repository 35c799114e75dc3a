"""The classes of a labelled task: as a recipe names them, as training rows hold them, or as a model has them."""

import statistics
from dataclasses import dataclass

from gpt_modules.data.rows.labelled import class_names, class_number
from gpt_modules.data.rows.sources import Source, name_of
from gpt_modules.data.splits import Row
from gpt_modules.errors import UserError
from gpt_modules.labelling import Labelling, LabellingKind
from gpt_modules.storage.documents import Foreign, read_document
from gpt_modules.storage.model_files import CONFIG_FILE
from gpt_modules.storage.paths import path_of


@dataclass(frozen=True)
class _Ours(Foreign):
    kind: str | None = None
    task: Labelling | None = None


@dataclass(frozen=True)
class _Config(Foreign):
    gpt_modules: _Ours = _Ours()


def check_names(task: LabellingKind, labels: list[str] | None, levels: list[int] | None) -> None:
    """What no task can have, before a row is read."""
    if levels is not None and len(levels) != 2:
        raise UserError(f"levels: found {levels}, expected the lowest and the highest score")
    if labels is None:
        Labelling(task, levels=None if levels is None else (levels[0], levels[1]))
        return
    if task == "regression" or levels is not None:
        raise UserError(f"labels: found {labels} for a task with numbers, expected none")
    if len(labels) < 2 or not all(labels):
        raise UserError(f"labels: found {labels}, expected at least 2 names")
    Labelling("classification", tuple(labels))  # refuses a name that stands twice


def saved_task(folder: str) -> Labelling | None:
    """The task in the `config.json` of a task model's folder; None for any other folder, and where there is none."""
    path = path_of(folder) / CONFIG_FILE
    if not path.is_file():
        return None
    ours = read_document(path, _Config, "the configuration of a model").gpt_modules
    return ours.task if ours.kind == "task" else None


def agreed(given: Labelling, saved: Labelling, folder: str) -> Labelling:
    """The task of the model in a folder, where the recipe says nothing else.

    Raises:
        UserError: It does.
    """
    for name, ours, theirs in (("labels", given.labels, saved.labels), ("levels", given.levels, saved.levels)):
        if ours and ours != theirs:
            model = f"those of {folder}, {list(theirs or ())}"
            raise UserError(f"{name}: found {list(ours)}, expected {model}")
    return saved


def named_by(train: list[Row], kind: LabellingKind, source: Source) -> Labelling:
    """The task with the classes of the training rows, whose labels become numbers."""
    if kind == "regression":
        return Labelling(kind)
    names = class_names([row["label"] for row in train], name_of(source))
    for row in train:
        row["label"] = class_number(row["label"], names, len(names))
    return Labelling(kind, names)


def measured(task: Labelling, train: list[Row], source: Source) -> Labelling:
    """For regression, the task with mean and spread of the training labels.

    Raises:
        UserError: They are all the same.
    """
    if task.kind != "regression":
        return task
    numbers = [row["label"] for row in train if row["label"] is not None]
    if len(set(numbers)) < 2:
        raise UserError(f"{name_of(source)}: label: found the same number in all rows, expected others")
    return Labelling(task.kind, mean=statistics.fmean(numbers), std=statistics.pstdev(numbers))
