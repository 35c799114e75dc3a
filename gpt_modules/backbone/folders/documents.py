"""config.json of a model's folder: what `transformers` reads there, and under "gpt_modules" what it has no word for.

Ours holds the kind of model, how it was initialised, what turns a raw output into a score, the task, and the SHA-256 of
the weights.
"""

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from gpt_modules.backbone.folders.model_families import check_fields, family_of, write_decoder
from gpt_modules.backbone.folders.weightmap import CHOICE, SCORE, Kind
from gpt_modules.backbone.labelling import LabellingModel
from gpt_modules.backbone.models import GPT, RewardModel
from gpt_modules.errors import UserError
from gpt_modules.labelling import Labelling
from gpt_modules.storage.model_files import CONFIG_FILE

FORMAT_VERSION = 1

_CLASSES = {"gpt2": "GPT2", "openai-gpt": "OpenAIGPT", "gpt_neo": "GPTNeo"}
# The multiple-choice head of theirs that is ours: the state at the token that the caller names, one linear layer.
_SUMMARY_FIELDS: dict[str, tuple[Any, ...]] = {
    "summary_type": ("cls_index",),
    "summary_use_proj": (True,),
    "summary_activation": (None, ""),
    "summary_proj_to_labels": (True,),
}
_CLASSIFICATION = "single_label_classification"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _is_list(kind: type, value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is kind for item in value)


# What JSON may say of a task's fields; what they mean is checked by `Labelling`.
_TASK_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "labels": (partial(_is_list, str), "a list of names"),
    "levels": (lambda value: value is None or (_is_list(int, value) and len(value) == 2), "null or two whole numbers"),
    "mean": (_is_number, "a finite number"),
    "std": (_is_number, "a finite number"),
}


def kind_of(model: GPT | RewardModel | LabellingModel) -> Kind:
    """The word for this class in folders."""
    if isinstance(model, LabellingModel):
        return "task"
    return "gpt" if isinstance(model, GPT) else "reward"


def write_ours(model: GPT | RewardModel | LabellingModel) -> dict[str, Any]:
    """The section "gpt_modules", without what belongs to the file of weights."""
    fields: dict[str, Any] = {"format_version": FORMAT_VERSION, "kind": kind_of(model), "init": model.config.init}
    if isinstance(model, RewardModel):
        # Their classification head has no bias: ours travels here, and their output is ours less this number.
        numbers = {"head_bias": model.head.linear.bias, "bias": model.bias, "scale": model.scale}
        fields |= {name: float(value.detach()) for name, value in numbers.items()}
    if isinstance(model, LabellingModel):
        fields |= {"task": model.task.to_dict(), "classifier_dropout": model.classifier_dropout}
    return fields


def write_theirs(model: GPT | RewardModel | LabellingModel) -> dict[str, Any]:
    """What `transformers` reads, by the class that opens the folder.

    Multiple choice is opened by their DoubleHeadsModel, all other tasks by ForSequenceClassification. Of a pair, the
    latter sees one order at a time: its logits of the two orders add up to ours. For regression its output is ours,
    before the task's `std` and `mean`. No class of theirs opens the family gpt_modules.
    """
    family = family_of(model.config, model.task if isinstance(model, LabellingModel) else None)
    fields = write_decoder(model.config, family)
    if family == "gpt_modules":
        return {**fields, "architectures": [type(model).__name__]}
    name, head = "ForCausalLM" if family == "gpt_neo" else "LMHeadModel", {}
    if isinstance(model, RewardModel):
        name, head = "ForSequenceClassification", _labels((), 1, "regression")
    elif isinstance(model, LabellingModel) and model.task.kind == "multiple_choice":
        name, head = "DoubleHeadsModel", {key: allowed[0] for key, allowed in _SUMMARY_FIELDS.items()}
        head |= {"summary_first_dropout": model.classifier_dropout, **_labels((), 1, None)}
    elif isinstance(model, LabellingModel):
        problem = "regression" if model.task.kind == "regression" else _CLASSIFICATION
        name, head = "ForSequenceClassification", _labels(model.task.labels, model.task.n_outputs, problem)
    return {**fields, "architectures": [_CLASSES[family] + name], **head}


def _labels(names: tuple[str, ...], count: int, problem_type: str | None) -> dict[str, Any]:
    names = names or tuple(f"LABEL_{number}" for number in range(count))
    ids = {"id2label": {str(number): name for number, name in enumerate(names)}}
    return {**ids, "label2id": {name: number for number, name in enumerate(names)}, "problem_type": problem_type}


def read_document(folder: Path) -> dict[str, Any]:
    """config.json. Raises `UserError` where it is missing, no JSON object, or of another format of ours."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected the configuration of a model")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("gpt_modules", {}), dict):
        raise UserError(f"{path}: found no JSON object, expected the configuration of a model")
    ours = document.get("gpt_modules", {})
    if (version := ours.get("format_version", FORMAT_VERSION)) != FORMAT_VERSION:
        raise UserError(f"{path}: gpt_modules.format_version: found {version!r}, expected {FORMAT_VERSION}")
    if (kind := ours.get("kind", "gpt")) not in get_args(Kind):
        raise UserError(f"{path}: gpt_modules.kind: found {kind!r}, expected one of {', '.join(get_args(Kind))}")
    return document


def checksum(document: Mapping[str, Any]) -> str | None:
    """SHA-256 of the weights that belong to this file, None where nobody wrote one.

    `transformers` carries our section along into folders of its own, where the weights have changed since.
    """
    rewritten = "transformers_version" in document
    return None if rewritten else document.get("gpt_modules", {}).get("sha256")


def held_kind(document: Mapping[str, Any], tensors: Mapping[str, Tensor], wanted: Kind | None) -> Kind:
    """The kind of model in a folder.

    Where it is theirs, its tensors tell: a classifier of one output is a reward model, and their double-headed model a
    language model, unless a task is wanted. Our word for it holds in what they wrote too, unless they have given the
    model a head since, or taken it away.
    """
    ours: Kind | None = document.get("gpt_modules", {}).get("kind")
    with_head = SCORE in tensors or CHOICE in tensors
    if ours is not None and ("transformers_version" not in document or with_head == (ours != "gpt")):
        return ours
    if SCORE in tensors:
        return "task" if wanted == "task" or len(tensors[SCORE]) > 1 else "reward"
    return "task" if wanted == "task" and CHOICE in tensors else "gpt"


def read_task(document: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path) -> tuple[Labelling, float]:
    """The task of a task model and its classifier dropout. Raises `UserError`, naming `path` and the field."""
    ours = document.get("gpt_modules", {})
    if ours.get("kind") != "task":
        return _their_task(document, tensors, path)
    if not isinstance(ours.get("task"), dict):
        raise UserError(f"{path}: gpt_modules.task: found {ours.get('task')!r}, expected a task")
    for name, (fits, expected) in _TASK_FIELDS.items():
        if name in ours["task"] and not fits(ours["task"][name]):
            raise UserError(f"{path}: gpt_modules.task.{name}: found {ours['task'][name]!r}, expected {expected}")
    try:
        task = Labelling.from_dict(ours["task"])
    except UserError as error:
        raise UserError(f"{path}: gpt_modules.task: {str(error).removeprefix('task: ')}") from error
    return task, _probability(ours, "classifier_dropout", path)


def _their_task(document: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path) -> tuple[Labelling, float]:
    if SCORE not in tensors:
        check_fields(document, _SUMMARY_FIELDS, path)
        return Labelling("multiple_choice"), _probability(document, "summary_first_dropout", path)
    outputs = len(tensors[SCORE])
    kind, problem = ("regression", "regression") if outputs == 1 else ("classification", _CLASSIFICATION)
    check_fields(document, {"problem_type": (problem, None)}, path)
    if kind == "regression":
        return Labelling("regression"), 0.0
    return Labelling("classification", _their_labels(document, outputs, path)), 0.0


def _their_labels(document: Mapping[str, Any], outputs: int, path: Path) -> tuple[str, ...]:
    names = document.get("id2label", {str(number): f"LABEL_{number}" for number in range(outputs)})
    if not isinstance(names, dict) or set(names) != {str(number) for number in range(outputs)}:
        raise UserError(f"{path}: id2label: found {names!r}, expected a name for each of 0 to {outputs - 1}")
    labels = tuple(str(names[str(number)]) for number in range(outputs))
    if len(set(labels)) < outputs:
        raise UserError(f"{path}: id2label: found {list(labels)}, expected each name once")
    return labels


def _probability(fields: Mapping[str, Any], name: str, path: Path) -> float:
    value = fields.get(name, 0.1)
    if not isinstance(value, int | float) or not 0.0 <= value < 1.0:
        raise UserError(f"{path}: {name}: found {value!r}, expected a probability in [0, 1)")
    return float(value)


def read_scalars(document: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The numbers of a reward model that its file of weights does not hold, as a `state_dict`."""
    values = {"head_bias": 0.0, "bias": 0.0, "scale": 1.0} | document.get("gpt_modules", {})
    for name in ("head_bias", "bias", "scale"):
        if not _is_number(values[name]):
            raise UserError(f"{path}: gpt_modules.{name}: found {values[name]!r}, expected a finite number")
    return {
        "head.linear.bias": torch.tensor([float(values["head_bias"])]),
        "bias": torch.tensor(float(values["bias"])),
        "scale": torch.tensor(float(values["scale"])),
    }
