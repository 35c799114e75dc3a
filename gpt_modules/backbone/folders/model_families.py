"""The families of models that a folder may hold, and how each spells a `DecoderConfig` in its config.json.

Those that came after GPT have a file of their own (`newer_families`). Three more are classes of `transformers`: gpt2
(pre-norm, dense), openai-gpt (post-norm, dense) and gpt_neo (pre-norm, dense or banded, without biases of queries, keys
and values). What none of all these can be, such as GPT-3 itself, which is banded and has those biases, is of the family
gpt_modules: a word that `transformers` does not know, so that it refuses the folder rather than open it without the
band.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from gpt_modules.backbone.config import GPT_FIELDS, Attention, DecoderConfig, Init
from gpt_modules.backbone.config_rules import MOST_LAYERS
from gpt_modules.backbone.folders.newer_families import (
    NEUTRAL_EVERYWHERE,
    NewerFamily,
    newer_family_of,
    newer_spelling,
    read_newer,
    write_newer,
)
from gpt_modules.errors import UserError
from gpt_modules.labelling import Labelling
from gpt_modules.storage.json_files import shown

OlderFamily = Literal["gpt2", "openai-gpt", "gpt_neo", "gpt_modules"]
Family = OlderFamily | NewerFamily
FAMILIES: tuple[Family, ...] = (*get_args(OlderFamily)[:-1], *get_args(NewerFamily), "gpt_modules")

_FIELDS = tuple(field.name for field in dataclasses.fields(DecoderConfig))
# Our field -> theirs.
_GPT_FIELDS = {name: name for name in (*_FIELDS[:5], "embd_pdrop", "attn_pdrop", "resid_pdrop", "layer_norm_epsilon")}
_SPELLING: dict[OlderFamily, dict[str, str]] = {
    "gpt2": _GPT_FIELDS,
    "openai-gpt": _GPT_FIELDS,
    "gpt_neo": {
        "vocab_size": "vocab_size",
        "n_positions": "max_position_embeddings",
        "n_layer": "num_layers",
        "n_head": "num_heads",
        "n_embd": "hidden_size",
        "embd_pdrop": "embed_dropout",
        "attn_pdrop": "attention_dropout",
        "resid_pdrop": "resid_dropout",
        "layer_norm_epsilon": "layer_norm_epsilon",
        "window": "window_size",
    },
    "gpt_modules": {name: name for name in _FIELDS},
}
# Where a family says nothing and it is not our default.
_DEFAULTS: dict[OlderFamily, dict[str, Any]] = {
    "gpt2": {},
    "openai-gpt": {"vocab_size": 40478, "n_positions": 512, "init": "gpt1"},
    "gpt_neo": {
        **{"n_positions": 2048, "n_layer": 24, "n_head": 16, "n_embd": 2048},
        **{"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0},
    },
    "gpt_modules": {},
}
# What makes a model one of the family, whatever its sizes.
_KIND: dict[OlderFamily, dict[str, Any]] = {
    "gpt2": {"norm": "pre"},
    "openai-gpt": {"norm": "post"},
    "gpt_neo": {"norm": "pre", "qkv_bias": False},
    "gpt_modules": {},
}
# What a folder may say of the switches that this decoder does not have; the first is what it says itself.
_FIXED_FIELDS: dict[str, tuple[Any, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "afn": ("gelu",),  # GPT-1's "gelu" is the tanh form
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False, None),
    "quantization_config": (None, {}),
    **NEUTRAL_EVERYWHERE,
    "tie_word_embeddings": (True,),
}
_SAID: dict[OlderFamily, dict[str, Any]] = {
    "gpt2": {"activation_function": "gelu_new", "n_inner": None},
    "openai-gpt": {"afn": "gelu"},
    "gpt_neo": {"activation_function": "gelu_new", "intermediate_size": None},
    "gpt_modules": {},
}
_THEIR_ATTENTION: dict[Attention, str] = {"dense": "global", "banded": "local"}
_OUR_ATTENTION = {theirs: ours for ours, theirs in _THEIR_ATTENTION.items()}


def family_of(config: DecoderConfig, task: Labelling | None = None) -> Family:
    """The family to write a model as: the one of `transformers` that is the same function, where there is one.

    Dense models without biases of queries, keys and values are GPT-Neo's with global attention throughout. GPT-Neo has
    no multiple-choice head, nor have those that came after it.
    """
    choice = task is not None and task.kind == "multiple_choice"
    if config.to_dict().keys() - set(GPT_FIELDS):
        return "gpt_modules" if choice else newer_family_of(config) or "gpt_modules"
    banded = "banded" in config.layers
    if config.qkv_bias and not banded:
        return "gpt2" if config.norm == "pre" else "openai-gpt"
    return "gpt_modules" if config.qkv_bias or config.norm == "post" or choice else "gpt_neo"


def write_decoder(config: DecoderConfig, family: Family) -> dict[str, Any]:
    """The fields of config.json that say what the decoder is."""
    if newer := as_newer(family):
        return write_newer(config, newer)
    older = _as_older(family)
    values = config.to_dict()
    fields = {theirs: values[ours] for ours, theirs in _SPELLING[older].items() if ours in values}
    if family == "gpt_neo":
        fields["attention_types"] = _to_types(config)
    return {"model_type": family, **fields, **_SAID[older], "tie_word_embeddings": True}


def read_family(document: Mapping[str, Any], path: Path) -> Family:
    """Raises `UserError`, naming `path`, for a family that is none of these."""
    found = document.get("model_type")
    family = next((known for known in FAMILIES if known == found), None)
    if family is None:
        raise UserError(f"{path}: model_type: found {shown(found)}, expected one of {', '.join(FAMILIES)}")
    return family


def read_decoder(
    document: Mapping[str, Any], path: Path, init: Init | None, pdrop: Mapping[str, float], complete: bool
) -> DecoderConfig:
    """The sizes.

    Args:
        init, pdrop: what our section says of the first weights and of dropout.
        complete: whether we wrote the file, and so every field: one that is missing was lost. What others leave out
            has the default of the family.

    Raises:
        UserError: naming `path` and the field, for what this decoder cannot be.
    """
    family = read_family(document, path)
    newer = as_newer(family)
    spelling = newer_spelling(newer) if newer else _SPELLING[_as_older(family)]
    expected = [
        theirs for ours, theirs in spelling.items() if ours in GPT_FIELDS and (ours != "window" or not newer)
    ]  # of the others, their defaults
    if lost := [theirs for theirs in expected if complete and theirs not in document]:
        raise UserError(f"{path}: {lost[0]}: missing, expected every field of the decoder")
    values = read_newer(document, newer, path) if newer else _read_older(document, _as_older(family), path)
    if family != "gpt_modules" and init is not None:
        values["init"] = init
    try:
        config = DecoderConfig.from_dict({**values, **pdrop})
    except UserError as error:
        raise UserError(f"{path}: {_in_their_words(str(error), spelling)}") from error
    if family == "gpt_neo" and len(config.attention) != config.n_layer:
        found = f"found {len(config.attention)} layers"
        raise UserError(f"{path}: attention_types: {found}, expected num_layers = {config.n_layer}")
    if family == "gpt_modules":
        return config
    return dataclasses.replace(config, attention=_shortest(config.attention))


def _read_older(document: Mapping[str, Any], family: OlderFamily, path: Path) -> dict[str, Any]:
    check_fields(document, _FIXED_FIELDS, path)
    spelling, values = _SPELLING[family], dict(_DEFAULTS[family])
    values |= {ours: document[theirs] for ours, theirs in spelling.items() if theirs in document}
    for name in ("n_inner", "intermediate_size"):
        width = values.get("n_embd", DecoderConfig.n_embd)
        if family != "gpt_modules" and document.get(name) not in (None, 4 * width if isinstance(width, int) else None):
            raise UserError(f"{path}: {name}: found {shown(document[name])}, expected 4 x {spelling['n_embd']}")
    if family == "gpt_neo":
        values["attention"] = _from_types(document.get("attention_types", [[["global", "local"], 12]]), path)
    return {**values, **_KIND[family]}


def as_newer(family: Family) -> NewerFamily | None:
    """The same family where it came after GPT."""
    return next((newer for newer in get_args(NewerFamily) if newer == family), None)


def _as_older(family: Family) -> OlderFamily:
    found: OlderFamily = next(older for older in get_args(OlderFamily) if older == family)
    return found


def _in_their_words(message: str, spelling: Mapping[str, str]) -> str:
    ours, colon, rest = message.removeprefix("config: ").partition(":")
    return spelling.get(ours, ours) + colon + rest


def check_fields(document: Mapping[str, Any], fields: Mapping[str, tuple[Any, ...]], path: Path) -> None:
    """Raises `UserError` for a field that says other than allowed; one that is not there says the first of them."""
    for name, allowed in fields.items():
        found = document.get(name, allowed[0])
        if not any(type(found) is type(one) and found == one for one in allowed):
            raise UserError(f"{path}: {name}: found {shown(found)}, expected {allowed[0]!r}")


def _to_types(config: DecoderConfig) -> list[Any]:
    """GPT-Neo's spelling of a pattern: kinds of layers, and how many times."""
    pattern = _shortest(config.layers)
    # A pattern that breaks off can only be spelt out.
    kinds = pattern if config.n_layer % len(pattern) == 0 else config.layers
    return [[[_THEIR_ATTENTION[kind] for kind in kinds], config.n_layer // len(kinds)]]


def _from_types(types: Any, path: Path) -> list[Attention]:
    layers: list[Attention] = []
    for part in types if isinstance(types, list) else [types]:
        fits = isinstance(part, list) and len(part) == 2 and isinstance(part[0], list) and type(part[1]) is int
        if not fits or any(kind not in list(_OUR_ATTENTION) for kind in part[0]):
            raise UserError(
                f'{path}: attention_types: found {shown(part)}, expected [["global", "local"], number of repetitions]'
            )
        if not 0 < part[1] <= MOST_LAYERS:
            raise UserError(f"{path}: attention_types: found {part[1]} repetitions, expected 1 to {MOST_LAYERS}")
        layers += [_OUR_ATTENTION[kind] for kind in part[0]] * part[1]
    return layers


def _shortest(layers: tuple[Attention, ...]) -> tuple[Attention, ...]:
    """The shortest pattern that, repeated, gives these layers."""
    lengths = range(1, len(layers) + 1)
    return next(layers[:n] for n in lengths if all(kind == layers[at % n] for at, kind in enumerate(layers)))
