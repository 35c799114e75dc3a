"""config.json of a model's folder: what `transformers` reads there, and under "gpt_modules" what it has no word for.

Ours holds the kind of model, how it was initialised, what turns a raw output into a score, the task, and the SHA-256 of
the weights, of the tokenizer and of itself.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from gpt_modules.backbone.config import DecoderConfig, Init
from gpt_modules.backbone.folders.model_families import as_newer, check_fields, family_of, read_decoder, write_decoder
from gpt_modules.backbone.folders.newer_families import lost_dropout
from gpt_modules.backbone.folders.weightmap import CHOICE, SCORE, Kind
from gpt_modules.backbone.labelling import LabellingModel
from gpt_modules.backbone.models import GPT, RewardModel
from gpt_modules.errors import UserError
from gpt_modules.labelling import Labelling
from gpt_modules.storage.documents import Rule, Sha256, document_of, typed
from gpt_modules.storage.json_files import read_json, shown
from gpt_modules.storage.model_files import ADAPTER_CONFIG_FILE, CONFIG_FILE

FORMAT_VERSION: Literal[1] = 1

_CLASSES = {
    **{"gpt2": "GPT2", "openai-gpt": "OpenAIGPT", "gpt_neo": "GPTNeo", "gpt_neox": "GPTNeoX", "opt": "OPT"},
    **{"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"},
}
# The multiple-choice head of theirs that is ours: the state at the token that the caller names, one linear layer.
_SUMMARY_FIELDS: dict[str, tuple[Any, ...]] = {
    "summary_type": ("cls_index",),
    "summary_use_proj": (True,),
    "summary_activation": (None, ""),
    "summary_proj_to_labels": (True,),
}
_CLASSIFICATION = "single_label_classification"


Probability = Annotated[float, Rule(lambda value: 0.0 <= value < 1.0, "a probability in [0, 1)")]


@dataclass(frozen=True)
class Ours:
    """The section "gpt_modules".

    Args:
        kind: None in what others wrote.
        pdrop: probabilities of dropout that the family has no word for.
        head_bias, bias, scale: of a reward model, what its file of weights does not hold.
        task, classifier_dropout: of a task model.
        sha256, inner_rates_sha256, tokenizer_sha256: of the files beside this one.
        config_sha256: of this file, see `config_digest`.
        extra: what the caller of `save_pretrained` wanted to keep.
    """

    format_version: Literal[1] = FORMAT_VERSION
    kind: Kind | None = None
    init: Init | None = None
    pdrop: dict[str, Probability] = field(default_factory=dict)
    head_bias: float = 0.0
    bias: float = 0.0
    scale: float = 1.0
    task: Labelling | None = None
    classifier_dropout: Probability = 0.1
    sha256: Sha256 | None = None
    inner_rates_sha256: Sha256 | None = None
    tokenizer_sha256: Sha256 | None = None
    config_sha256: Sha256 | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind == "task" and self.task is None:
            raise UserError("task: found none, expected the task of a model of this kind")
        if self.task is not None and self.task.n_outputs < 1:
            raise UserError("task.labels: found none, expected the names of the task's classes")


@dataclass(frozen=True)
class ModelDocument:
    """config.json. theirs: all of it, as `transformers` reads it. ours: our section, typed."""

    path: Path
    theirs: Mapping[str, Any]
    ours: Ours

    @property
    def rewritten(self) -> bool:
        """Whether `transformers` wrote it: it carries our section along, and the weights have changed since."""
        return "transformers_version" in self.theirs

    @property
    def sha256(self) -> str | None:
        """Of the weights that belong to this file, None where nobody wrote it."""
        return None if self.rewritten else self.ours.sha256

    @property
    def inner_rates_sha256(self) -> str | None:
        """Of the inner rates that belong to the weights, None where there are none."""
        return None if self.rewritten else self.ours.inner_rates_sha256

    @property
    def is_ours(self) -> bool:
        """Whether we wrote every field of it."""
        return self.ours.kind is not None and not self.rewritten


def kind_of(model: GPT | RewardModel | LabellingModel) -> Kind:
    """The word for this class in folders."""
    if isinstance(model, LabellingModel):
        return "task"
    return "gpt" if isinstance(model, GPT) else "reward"


def write_ours(model: GPT | RewardModel | LabellingModel) -> dict[str, Any]:
    """The section "gpt_modules", without what belongs to the file of weights."""
    config = model.config
    fields: dict[str, Any] = {"format_version": FORMAT_VERSION, "kind": kind_of(model), "init": config.init}
    family = family_of(config, model.task if isinstance(model, LabellingModel) else None)
    if (newer := as_newer(family)) and (lost := lost_dropout(config, newer)):
        fields["pdrop"] = lost
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
    name, head = "LMHeadModel" if family in ("gpt2", "openai-gpt") else "ForCausalLM", {}
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


def open_document(folder: Path) -> ModelDocument:
    """config.json of a folder.

    Raises:
        UserError: it is missing (where an adapter is, that is said), no JSON object, of another format of ours, or says
            what our section cannot say.
    """
    path, expected = folder / CONFIG_FILE, "the configuration of a model"
    if (folder / ADAPTER_CONFIG_FILE).is_file() and not path.is_file():
        raise UserError(f"{folder}: found an adapter, expected a model: the export beside it has its updates merged")
    fields = read_json(path, expected)
    if not isinstance(fields, dict):
        raise UserError(f"{path}: found {shown(fields)}, expected {expected}")
    section = fields.get("gpt_modules", {})
    ours = document_of(path, _Section, {"gpt_modules": section}).gpt_modules
    return ModelDocument(path, fields, ours)


@dataclass(frozen=True)
class _Section:
    gpt_modules: Ours


def is_language_model(folder: Path) -> bool:
    """Whether the model in a folder of ours speaks."""
    return open_document(folder).ours.kind == "gpt"


def decoder_of(document: ModelDocument) -> DecoderConfig:
    """The sizes. Raises `UserError`, naming the file and the field, for what this decoder cannot be."""
    return read_decoder(document.theirs, document.path, document.ours.init, document.ours.pdrop, document.is_ours)


def check_unaltered(document: ModelDocument) -> None:
    """What was exported is what is opened: the weights may fit other settings as well, and give other numbers.

    Raises:
        UserError: the file has other values than it was written with. Folders of others have no digest to tell.
    """
    expected = None if document.rewritten else document.ours.config_sha256
    if expected is not None and config_digest(document.theirs) != expected:
        raise UserError(f"{document.path}: found altered since it was exported, expected it as it was (or, where that "
                        "is meant, without gpt_modules.config_sha256)")  # fmt: skip


def config_digest(fields: Mapping[str, Any]) -> str:
    """SHA-256 of all that a config.json says but `extra` and digests: of the values, however they are laid out."""
    section: Mapping[str, Any] = fields["gpt_modules"]
    ours = {key: value for key, value in section.items() if key != "extra" and not key.endswith("sha256")}
    return hashlib.sha256(json.dumps({**fields, "gpt_modules": ours}, sort_keys=True).encode()).hexdigest()


def held_kind(document: ModelDocument, tensors: Mapping[str, Tensor], wanted: Kind | None) -> Kind:
    """The kind of model in a folder.

    Where it is theirs, its tensors tell: a classifier of one output is a reward model, and their double-headed model a
    language model, unless a task is wanted. Our word for it holds in what they wrote too, unless they have given the
    model a head since, or taken it away.
    """
    ours = document.ours.kind
    with_head = SCORE in tensors or CHOICE in tensors
    if ours is not None and (not document.rewritten or with_head == (ours != "gpt")):
        return ours
    if SCORE in tensors:
        return "task" if wanted == "task" or len(tensors[SCORE]) > 1 else "reward"
    return "task" if wanted == "task" and CHOICE in tensors else "gpt"


def read_task(document: ModelDocument, tensors: Mapping[str, Tensor]) -> tuple[Labelling, float]:
    """The task of a task model and its classifier dropout. Raises `UserError`, naming the file and the field."""
    ours = document.ours
    if ours.kind != "task" or ours.task is None:
        return _their_task(document.theirs, tensors, document.path)
    return ours.task, ours.classifier_dropout


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
        raise UserError(f"{path}: id2label: found {shown(names)}, expected a name for each of 0 to {outputs - 1}")
    labels = tuple(str(names[str(number)]) for number in range(outputs))
    if len(set(labels)) < outputs:
        raise UserError(f"{path}: id2label: found {shown(list(labels))}, expected each name once")
    return labels


def _probability(fields: Mapping[str, Any], name: str, path: Path) -> float:
    try:
        return float(typed(Probability, fields.get(name, 0.1), name))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def read_scalars(document: ModelDocument) -> dict[str, Tensor]:
    """The numbers of a reward model that its file of weights does not hold, as a `state_dict`.

    Raises:
        UserError: one that a float32 cannot hold.
    """
    ours = document.ours
    found = {"head.linear.bias": torch.tensor([ours.head_bias]), "bias": torch.tensor(ours.bias)}
    found["scale"] = torch.tensor(ours.scale)
    for name, value in found.items():
        if not torch.isfinite(value).all():
            raise UserError(f"{document.path}: gpt_modules: {name}: found {value.item()}, expected a finite number")
    return found
