"""A model as a folder: config.json, model.safetensors and the tokenizer, in the form that `transformers` opens as it
is.

What `transformers` has no word for stands in config.json under "gpt_modules": the kind of model, how it was
initialised, what turns a raw output into a score, and the SHA-256 of the weights, which is checked whenever they are
read. Nothing is ever executed: weights come from safetensors, or from a `pytorch_model.bin` with `weights_only=True`.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any, Literal, overload

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpt_modules.backbone.config import DecoderConfig
from gpt_modules.backbone.folders import find_folder, replace_folder
from gpt_modules.backbone.models import GPT, RewardModel
from gpt_modules.backbone.weightmap import Kind, from_transformers, to_transformers
from gpt_modules.errors import UserError

FORMAT_VERSION = 1
END_OF_TEXT = "<|endoftext|>"

_FAMILIES = {"gpt2": "pre", "openai-gpt": "post"}
_ARCHITECTURES = {
    ("pre", "gpt"): "GPT2LMHeadModel",
    ("post", "gpt"): "OpenAIGPTLMHeadModel",
    ("pre", "reward"): "GPT2ForSequenceClassification",
    ("post", "reward"): "OpenAIGPTForSequenceClassification",
}
_SHARED_FIELDS = ("vocab_size", "n_positions", "n_layer", "n_head", "n_embd", "embd_pdrop", "attn_pdrop", "resid_pdrop")
# What a folder of theirs may say of the switches that this decoder does not have.
_FIXED_FIELDS: dict[str, tuple[Any, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "afn": ("gelu",),  # GPT-1's "gelu" is the tanh form
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}


def save_pretrained(
    folder: str | Path,
    model: GPT | RewardModel,
    *,
    tokenizer_file: str | Path | None = None,
    tokenizer_json: str | None = None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Write `model` and its tokenizer as a folder; a folder written here before is replaced.

    Args:
        tokenizer_file, tokenizer_json: the tokenizer of the `tokenizers` library, as a file or as its text.
        extra: plain values to keep with the model; `read_extra` gives them back.

    Files are written beside the target and moved there at the end: a save that is cut off leaves the target as it was.
    Raises `UserError` where the target holds files of another kind, or the tokenizer has more tokens than the model.
    """
    if tokenizer_file is not None:
        tokenizer_json = Path(tokenizer_file).read_text(encoding="utf-8")
    kind: Kind = "gpt" if isinstance(model, GPT) else "reward"
    specials = _special_tokens(tokenizer_json, model.config.vocab_size) if tokenizer_json is not None else {}
    tensors = to_transformers(model.state_dict(), model.config, kind)
    with replace_folder(Path(folder)) as new:
        save_file(tensors, new / "model.safetensors", metadata={"format": "pt"})
        ours = {**_ours(model, kind), "sha256": _sha256(new / "model.safetensors"), "extra": extra or {}}
        dtype = str(tensors["transformer.h.0.ln_1.weight"].dtype).removeprefix("torch.")
        config = {**_theirs(model.config, kind), **_ids(specials), "dtype": dtype, "gpt_modules": ours}
        _write_json(new / "config.json", config)
        if tokenizer_json is not None:
            (new / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
            _write_json(new / "tokenizer_config.json", _tokenizer_config(specials, model.config))


def _ours(model: GPT | RewardModel, kind: Kind) -> dict[str, Any]:
    fields: dict[str, Any] = {"format_version": FORMAT_VERSION, "kind": kind, "init": model.config.init}
    if isinstance(model, RewardModel):
        # Their classification head has no bias: ours travels here, and their output is ours less this number.
        numbers = {"head_bias": model.head.linear.bias, "bias": model.bias, "scale": model.scale}
        fields |= {name: float(value.detach()) for name, value in numbers.items()}
    return fields


def _theirs(config: DecoderConfig, kind: Kind) -> dict[str, Any]:
    fields: dict[str, Any] = {name: getattr(config, name) for name in (*_SHARED_FIELDS, "layer_norm_epsilon")}
    fields |= {"architectures": [_ARCHITECTURES[config.norm, kind]], "tie_word_embeddings": True}
    if config.norm == "pre":
        fields |= {"model_type": "gpt2", "activation_function": "gelu_new", "n_inner": None}
    else:
        fields |= {"model_type": "openai-gpt", "afn": "gelu"}
    if kind == "reward":
        fields |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "problem_type": "regression"}
    return fields


def _special_tokens(tokenizer_json: str, vocab_size: int) -> dict[str, int]:
    """Ids of the special tokens that a tokenizer of GPT-1's or GPT-2's kind may have."""
    document = json.loads(tokenizer_json)
    ids = {**document["model"]["vocab"], **{token["content"]: token["id"] for token in document["added_tokens"]}}
    if max(ids.values()) >= vocab_size:
        raise UserError(f"tokenizer: found ids up to {max(ids.values())}, expected less than vocab_size = {vocab_size}")
    return {name: ids[name] for name in (END_OF_TEXT, "<unk>") if name in ids}


def _ids(specials: dict[str, int]) -> dict[str, int | None]:
    # Said even where there is none: their default is 50256, outside a small vocabulary.
    return {"bos_token_id": specials.get(END_OF_TEXT), "eos_token_id": specials.get(END_OF_TEXT)}


def _tokenizer_config(specials: dict[str, int], config: DecoderConfig) -> dict[str, Any]:
    fields: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.n_positions}
    if END_OF_TEXT in specials:
        fields |= {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT}
    if "<unk>" in specials:
        fields["unk_token"] = "<unk>"
    return {**fields, "clean_up_tokenization_spaces": False}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


@overload
def load_pretrained(name: str | Path, kind: Literal["gpt"], **changes: Any) -> GPT: ...
@overload
def load_pretrained(name: str | Path, kind: Literal["reward"], **changes: Any) -> RewardModel: ...
@overload
def load_pretrained(name: str | Path, kind: None = None, **changes: Any) -> GPT | RewardModel: ...
def load_pretrained(name: str | Path, kind: Kind | None = None, **changes: Any) -> GPT | RewardModel:
    """The model in a folder of ours or of `transformers`, or of a name on the Hugging Face hub; float32, on the CPU.

    `kind` says what the caller needs; None takes what there is. `changes` replace fields of the configuration, such as
    `attn_pdrop=0.0`. Raises `UserError`, one line, for a folder or file that is missing, another kind of model, weights
    that are damaged (SHA-256), of another shape, or not finite.
    """
    folder = find_folder(name)
    document = _read_document(folder)
    ours = document.get("gpt_modules", {})
    config = _change(_config(document, folder / "config.json"), changes)
    path, tensors = _read_weights(folder, ours.get("sha256"))
    held: Kind = ours.get("kind", "reward" if "score.weight" in tensors else "gpt")
    if kind is not None and kind != held:
        raise UserError(f"{folder}: found a model of kind {held!r}, expected {kind!r}")
    state = from_transformers(tensors, config, held, str(path))
    with torch.device("meta"):  # no time spent on drawing weights that are replaced at once
        model: GPT | RewardModel = GPT(config) if held == "gpt" else RewardModel(config)
    if held == "reward":
        state |= _scalars(ours, folder / "config.json")
    model.load_state_dict(state, assign=True)
    return model


def _scalars(ours: dict[str, Any], path: Path) -> dict[str, Tensor]:
    values = {"head_bias": 0.0, "bias": 0.0, "scale": 1.0} | ours
    for name in ("head_bias", "bias", "scale"):
        if not isinstance(values[name], int | float) or not math.isfinite(values[name]):
            raise UserError(f"{path}: gpt_modules.{name}: found {values[name]!r}, expected a finite number")
    return {
        "head.linear.bias": torch.tensor([float(values["head_bias"])]),
        "bias": torch.tensor(float(values["bias"])),
        "scale": torch.tensor(float(values["scale"])),
    }


def _change(config: DecoderConfig, changes: dict[str, Any]) -> DecoderConfig:
    return DecoderConfig.from_dict({**config.to_dict(), **changes}) if changes else config


def read_config(name: str | Path) -> DecoderConfig:
    """The configuration of the model in a folder, or on the hub, without its weights."""
    folder = find_folder(name)
    return _config(_read_document(folder), folder / "config.json")


def read_extra(name: str | Path) -> dict[str, Any]:
    """What `save_pretrained` was given as `extra`; empty for folders that are not ours."""
    extra: dict[str, Any] = _read_document(find_folder(name)).get("gpt_modules", {}).get("extra", {})
    return extra


def _read_document(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected the configuration of a model")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("gpt_modules", {}), dict):
        raise UserError(f"{path}: found no JSON object, expected the configuration of a model")
    version = document.get("gpt_modules", {}).get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise UserError(f"{path}: gpt_modules.format_version: found {version!r}, expected {FORMAT_VERSION}")
    return document


def _config(document: dict[str, Any], path: Path) -> DecoderConfig:
    family = document.get("model_type")
    if family not in _FAMILIES:
        raise UserError(f"{path}: model_type: found {family!r}, expected one of {', '.join(_FAMILIES)}")
    for name, allowed in _FIXED_FIELDS.items():
        if document.get(name, allowed[0]) not in allowed:
            raise UserError(f"{path}: {name}: found {document[name]!r}, expected {allowed[0]!r}")
    if document.get("n_inner") not in (None, 4 * document.get("n_embd", 768)):
        raise UserError(f"{path}: n_inner: found {document['n_inner']!r}, expected 4 x n_embd")
    norm = _FAMILIES[family]
    sizes = {} if norm == "pre" else {"vocab_size": 40478, "n_positions": 512}
    shared = {name: document[name] for name in (*_SHARED_FIELDS, "layer_norm_epsilon") if name in document}
    init = document.get("gpt_modules", {}).get("init", "gpt2" if norm == "pre" else "gpt1")
    try:
        return DecoderConfig.from_dict({**sizes, **shared, "norm": norm, "init": init})
    except UserError as error:
        raise UserError(f"{path}: {str(error).removeprefix('config: ')}") from error


def _read_weights(folder: Path, sha256: str | None) -> tuple[Path, dict[str, Tensor]]:
    path, pickled = folder / "model.safetensors", folder / "pytorch_model.bin"
    index = folder / "model.safetensors.index.json"
    if path.is_file():
        if sha256 is not None and (found := _sha256(path)) != sha256:
            raise UserError(f"{path}: damaged: found SHA-256 {found[:12]}…, expected {sha256[:12]}…")
        return path, _read_safetensors(path)
    if sha256 is None and index.is_file():
        parts = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        return index, {name: tensor for part in parts for name, tensor in _read_safetensors(folder / part).items()}
    if sha256 is None and pickled.is_file():
        try:
            tensors: dict[str, Tensor] = torch.load(pickled, map_location="cpu", weights_only=True)
        except Exception as error:
            raise UserError(f"{pickled}: not a file of plain weights: {str(error).splitlines()[0]}") from error
        return pickled, tensors
    raise UserError(f"{path}: no such file, expected the weights of a model")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file: {error}") from error
    return tensors


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
