"""A model as a folder: config.json, model.safetensors and the tokenizer, in the form that `transformers` opens as it
is, where it has a class for the model (`model_families`).

The SHA-256 of weights and tokenizer written here stands in config.json, with its own, and is checked whenever they are
read. Nothing is ever executed: weights come from safetensors, or from a `pytorch_model.bin` with `weights_only=True`.
"""

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpt_modules.backbone.config import DecoderConfig
from gpt_modules.backbone.folders.blank import blank_weights
from gpt_modules.backbone.folders.documents import (
    ModelDocument,
    check_unaltered,
    config_digest,
    decoder_of,
    held_kind,
    kind_of,
    open_document,
    read_scalars,
    read_task,
    write_ours,
    write_theirs,
)
from gpt_modules.backbone.folders.inner_rates import INNER_RATES_FILE, INNER_RATES_SHA256, InnerRates, save_inner_rates
from gpt_modules.backbone.folders.model_families import read_family
from gpt_modules.backbone.folders.original import is_original, read_original
from gpt_modules.backbone.folders.replacing import find_folder, replace_folder
from gpt_modules.backbone.folders.weightmap import Kind, from_transformers, to_transformers
from gpt_modules.backbone.labelling import LabellingModel
from gpt_modules.backbone.models import GPT, RewardModel
from gpt_modules.errors import UserError
from gpt_modules.labelling import Labelling
from gpt_modules.storage.digests import sha256_of
from gpt_modules.storage.documents import FileName, Foreign, at, read_document
from gpt_modules.storage.model_files import (
    CONFIG_FILE,
    END_OF_TEXT,
    GENERATION_FILE,
    TEMPLATE_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    ChatFiles,
)


def save_pretrained(
    folder: str | Path,
    model: GPT | RewardModel | LabellingModel,
    *,
    tokenizer_file: str | Path | None = None,
    tokenizer_json: str | None = None,
    chat: ChatFiles | None = None,
    extra: dict[str, Any] | None = None,
    inner_rates: InnerRates | None = None,
) -> None:
    """Write `model` and its tokenizer as a folder; a folder written here before is replaced.

    Args:
        tokenizer_file, tokenizer_json: the tokenizer of the `tokenizers` library, as a file or as its text.
        chat: the chat template beside it, its names of tokens and those that end an answer.
        extra: plain values to keep with the model; `read_extra` gives them back.
        inner_rates: how the model was meant to be adapted; `load_inner_rates` gives it back.

    Files are written beside the target and moved there at the end: a save that is cut off leaves the target as it was.
    Raises `UserError` where the target holds files of another kind, or the tokenizer has more tokens than the model.
    """
    if tokenizer_file is not None:
        tokenizer_json = Path(tokenizer_file).read_text(encoding="utf-8")
    vocabulary = {} if tokenizer_json is None else _vocabulary(tokenizer_json, model.config.vocab_size)
    settings = {**_tokenizer_config(vocabulary, model.config), **({} if chat is None else chat.names)}
    ids = _ids(vocabulary, settings, chat)
    task = model.task if isinstance(model, LabellingModel) else None
    tensors = to_transformers(model.state_dict(), model.config, kind_of(model), task)
    with replace_folder(Path(folder)) as new:
        save_file(tensors, new / WEIGHTS_FILE, metadata={"format": "pt"})
        ours = {**write_ours(model), "sha256": sha256_of(new / WEIGHTS_FILE), "extra": extra or {}}
        if inner_rates is not None:
            ours[INNER_RATES_SHA256] = save_inner_rates(new / INNER_RATES_FILE, inner_rates, model.state_dict())
        dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
        if tokenizer_json is not None:
            (new / TOKENIZER_FILE).write_bytes(tokenizer_json.encode())
            ours["tokenizer_sha256"] = sha256_of(new / TOKENIZER_FILE)
            _write_json(new / "tokenizer_config.json", settings)
        if chat is not None:
            (new / TEMPLATE_FILE).write_bytes(chat.template.encode())
            begin_and_pad = {name: found for name, found in ids.items() if name != "eos_token_id" and found is not None}
            _write_json(new / GENERATION_FILE, {"eos_token_id": [*chat.end_ids], **begin_and_pad})
        config = {**write_theirs(model), **ids, "dtype": dtype, "gpt_modules": ours}
        ours["config_sha256"] = config_digest(json.loads(json.dumps(config)))
        _write_json(new / CONFIG_FILE, config)


def _vocabulary(tokenizer_json: str, vocab_size: int) -> dict[str, int]:
    """The ids of a tokenizer by what they stand for."""
    document = json.loads(tokenizer_json)
    symbols = document["model"]["vocab"]
    known = symbols if isinstance(symbols, dict) else {piece: i for i, (piece, _) in enumerate(symbols)}
    ids: dict[str, int] = {**known, **{token["content"]: token["id"] for token in document["added_tokens"]}}
    if max(ids.values()) >= vocab_size:
        raise UserError(f"tokenizer: found ids up to {max(ids.values())}, expected less than vocab_size = {vocab_size}")
    return ids


def _ids(vocabulary: dict[str, int], settings: dict[str, Any], chat: ChatFiles | None) -> dict[str, int | None]:
    # Said even where there is none: their default is 50256, outside a small vocabulary, or another family's token 1.
    named, said, ends = ({}, {}, ()) if chat is None else (chat.names, chat.ids, chat.end_ids)
    names = ("bos_token", "eos_token", "pad_token")
    ids = {f"{name}_id": vocabulary.get(settings.get(name, "")) for name in names}
    ids |= {key: i for key, i in said.items() if key.removesuffix("_id") not in named}
    if ids["pad_token_id"] in (ids["eos_token_id"], *ends):
        ids["pad_token_id"] = None  # their classifier would pass over the end of an answer, which is what is scored
    return ids


def _tokenizer_config(vocabulary: dict[str, int], config: DecoderConfig) -> dict[str, Any]:
    """Of a tokenizer of GPT-1's or GPT-2's kind; others bring names of their own."""
    fields: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.n_positions}
    if END_OF_TEXT in vocabulary:
        fields |= {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT}
    if "<unk>" in vocabulary:
        fields["unk_token"] = "<unk>"
    return {**fields, "clean_up_tokenization_spaces": False}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


@overload
def load_pretrained(name: str | Path, kind: Literal["gpt"], **changes: Any) -> GPT: ...
@overload
def load_pretrained(name: str | Path, kind: Literal["reward"], **changes: Any) -> RewardModel: ...
@overload
def load_pretrained(name: str | Path, kind: Literal["task"], **changes: Any) -> LabellingModel: ...
@overload
def load_pretrained(name: str | Path, kind: None = None, **changes: Any) -> GPT | RewardModel | LabellingModel: ...
def load_pretrained(name: str | Path, kind: Kind | None = None, **changes: Any) -> GPT | RewardModel | LabellingModel:
    """The model in a folder of ours, of `transformers` or of the original GPT-1 release, or of a name on the Hugging
    Face hub; float32, on the CPU.

    `kind` says what the caller needs; None takes what there is. Of what `transformers` wrote, a classifier of several
    classes is a task; one of a single output is a reward model, or as "task" a regression; a double-headed model is a
    language model, or as "task" multiple choice. `changes` replace fields of the configuration, such as
    `attn_pdrop=0.0`. Raises `UserError`, one line, for a folder or file that is missing, another kind of model, weights
    that are damaged (SHA-256), of another shape, or not finite.
    """
    with torch.device("cpu"):  # or what names no device would lie where Lightning's `configure_model` says
        return _load(find_folder(name), kind, changes)


def _load(folder: Path, kind: Kind | None, changes: dict[str, Any]) -> GPT | RewardModel | LabellingModel:
    if is_original(folder):
        _check_kind(folder, "gpt", kind)
        return read_original(folder, **changes)
    document = open_document(folder)
    config = _change(decoder_of(document), changes)
    path, tensors = _read_weights(folder, document.sha256)
    held = held_kind(document, tensors, kind)
    _check_kind(folder, held, kind)
    task, dropout = read_task(document, tensors) if held == "task" else (None, 0.0)
    family = read_family(document.theirs, document.path)  # that of the file, whatever `changes` make of the model
    # Before the model is made: a configuration may ask for any size, the weights show which one is meant.
    state = from_transformers(tensors, config, held, str(path), task, family)
    with blank_weights():
        model = _blank(document, config, held, task, dropout)
    if held == "reward":
        state |= read_scalars(document)
    check_unaltered(document)  # last: a field that cannot be is named
    model.load_state_dict(state, assign=True)
    return model


def _check_kind(folder: Path, held: Kind, wanted: Kind | None) -> None:
    if wanted is not None and wanted != held:
        raise UserError(f"{folder}: found a model of kind {held!r}, expected {wanted!r}")


def _blank(
    document: ModelDocument, config: DecoderConfig, kind: Kind, task: Labelling | None, dropout: float
) -> GPT | RewardModel | LabellingModel:
    if task is None:
        return GPT(config) if kind == "gpt" else RewardModel(config)
    try:
        return LabellingModel(config, task, dropout)
    except UserError as error:
        raise UserError(f"{document.path}: gpt_modules.task: {error}") from error


def _change(config: DecoderConfig, changes: dict[str, Any]) -> DecoderConfig:
    return DecoderConfig.from_dict({**config.to_dict(), **changes}) if changes else config


def read_config(name: str | Path) -> DecoderConfig:
    """The configuration of the model in a folder, or on the hub, without its weights."""
    folder = find_folder(name)
    if is_original(folder):
        return read_original(folder).config
    document = open_document(folder)
    config = decoder_of(document)
    check_unaltered(document)
    return config


def read_extra(name: str | Path) -> dict[str, Any]:
    """What `save_pretrained` was given as `extra`; empty for folders that are not ours."""
    folder = find_folder(name)
    if is_original(folder):
        return {}
    return open_document(folder).ours.extra


def _read_weights(folder: Path, sha256: str | None) -> tuple[Path, dict[str, Tensor]]:
    path, pickled = folder / WEIGHTS_FILE, folder / "pytorch_model.bin"
    index = folder / "model.safetensors.index.json"
    if path.is_file():
        if sha256 is not None and (found := sha256_of(path)) != sha256:
            raise UserError(f"{path}: damaged: found SHA-256 {found[:12]}…, expected {sha256[:12]}…")
        return path, _read_safetensors(path)
    if sha256 is None and index.exists():
        return index, _read_parts(folder, index)
    if sha256 is None and pickled.is_file():
        return pickled, _read_pickled(pickled)
    raise UserError(f"{path}: no such file, expected the weights of a model")


def _read_parts(folder: Path, index: Path) -> dict[str, Tensor]:
    """The weights of several files, each tensor from the file that the index names."""
    where = read_document(index, _Index, "the index of a model's files").weight_map
    parts = {part: _read_safetensors(folder / part) for part in sorted(set(where.values()))}
    for name, part in where.items():
        if name not in parts[part]:
            raise UserError(f"{folder / part}: {at('', name)}: missing, expected the tensor that {index.name} names")
    return {name: parts[part][name] for name, part in where.items()}


@dataclass(frozen=True)
class _Index(Foreign):
    weight_map: dict[str, FileName]


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, MemoryError) as error:
        # Of a damaged header the library finds much, and torch the rest: types it does not know, sizes beyond any.
        raise UserError(f"{path}: not a readable safetensors file: {_first_line(error)}") from error
    return tensors


def _read_pickled(path: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Torch's own words are advice to run what stands in the file.
        expected = "expected tensors alone: what else a pickle holds could be code, and is not run"
        raise UserError(f"{path}: not a file of plain weights: found other things, {expected}") from error
    except Exception as error:
        raise UserError(f"{path}: not a file of plain weights: {_first_line(error)}") from error
    plain = isinstance(tensors, dict) and all(isinstance(name, str) for name in tensors)
    if not plain or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise UserError(f"{path}: not a file of plain weights: found other things, expected tensors by name")
    return dict(tensors)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
