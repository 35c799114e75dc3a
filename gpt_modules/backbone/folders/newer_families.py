"""The families of `transformers` that came after GPT, and how each spells a `DecoderConfig` in its config.json.

gpt_neox (Pythia), opt, llama (Llama 2 and 3, SmolLM, TinyLlama), mistral, qwen2 and qwen3. What a family always is
stands in `_KIND`, what a file says in `_SPELLING`, and what it must not say, as this decoder does not compute it, in
`_NEUTRAL`. A field that is in none of these, and no mere note (`_NOTES`), is refused unless it says nothing: nobody
knows what a model with it would compute.
"""

import dataclasses
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from gpt_modules.backbone.config import DecoderConfig
from gpt_modules.backbone.config_rules import MOST_LAYERS
from gpt_modules.backbone.folders.rope_fields import NEOX_FIELDS, ROPE_FIELDS, read_rope, write_rope
from gpt_modules.errors import UserError
from gpt_modules.storage.documents import at
from gpt_modules.storage.json_files import shown
from gpt_modules.storage.model_files import CONFIG_FILE

NewerFamily = Literal["gpt_neox", "opt", "llama", "mistral", "qwen2", "qwen3"]

# Their field -> ours, all of which have its value.
_SIZES = {
    "vocab_size": ("vocab_size",),
    "max_position_embeddings": ("n_positions",),
    "hidden_size": ("n_embd",),
    "num_hidden_layers": ("n_layer",),
    "num_attention_heads": ("n_head",),
    "attention_dropout": ("attn_pdrop",),
    "tie_word_embeddings": ("tied",),
}
_INNER, _BIASES = {"intermediate_size": ("n_inner",)}, {"attention_bias": ("qkv_bias", "proj_bias")}
_GROUPED: dict[str, tuple[str, ...]] = {
    **_SIZES,
    **_INNER,
    "num_key_value_heads": ("n_kv_head",),
    "head_dim": ("head_size",),
    "rms_norm_eps": ("layer_norm_epsilon",),
}
_SPELLING: dict[NewerFamily, dict[str, tuple[str, ...]]] = {
    "gpt_neox": {
        **_SIZES,
        **_INNER,
        **_BIASES,
        "layer_norm_eps": ("layer_norm_epsilon",),
        "hidden_dropout": ("embd_pdrop", "resid_pdrop"),
        "use_parallel_residual": ("parallel_residual",),
    },
    "opt": {
        **_SIZES,
        "ffn_dim": ("n_inner",),
        "dropout": ("resid_pdrop",),
        "enable_bias": ("qkv_bias", "proj_bias", "mlp_bias"),
    },
    "llama": {**_GROUPED, **_BIASES, "mlp_bias": ("mlp_bias",)},
    "mistral": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": {**_GROUPED, **_BIASES},
}
# Where a file leaves a field out: what its class of `transformers` says.
_LLAMA = {
    **{"vocab_size": 32000, "max_position_embeddings": 2048, "hidden_size": 4096, "num_hidden_layers": 32},
    **{"num_attention_heads": 32, "attention_dropout": 0.0, "tie_word_embeddings": False, "intermediate_size": 11008},
    **{"num_key_value_heads": None, "head_dim": None, "rms_norm_eps": 1e-6},
}
_QWEN = _LLAMA | {"vocab_size": 151936, "max_position_embeddings": 32768, "intermediate_size": 22016,
                  "num_key_value_heads": 32}  # fmt: skip
_DEFAULTS: dict[NewerFamily, dict[str, Any]] = {
    "gpt_neox": {
        **{"vocab_size": 50432, "max_position_embeddings": 2048, "hidden_size": 6144, "num_hidden_layers": 44},
        **{"num_attention_heads": 64, "attention_dropout": 0.0, "tie_word_embeddings": False},
        **{"intermediate_size": 24576, "attention_bias": True, "layer_norm_eps": 1e-5, "hidden_dropout": 0.0},
        "use_parallel_residual": True,
    },
    "opt": {
        **{"vocab_size": 50272, "max_position_embeddings": 2048, "hidden_size": 768, "num_hidden_layers": 12},
        **{"num_attention_heads": 12, "attention_dropout": 0.0, "tie_word_embeddings": True, "ffn_dim": 3072},
        **{"dropout": 0.1, "enable_bias": True},
    },
    "llama": {**_LLAMA, "attention_bias": False, "mlp_bias": False},
    "mistral": _LLAMA | {"max_position_embeddings": 4096 * 32, "intermediate_size": 14336, "num_key_value_heads": 8},
    "qwen2": _QWEN,
    "qwen3": {**_QWEN, "head_dim": 128, "attention_bias": False},
}
_ROTARY_RMS = {"norm": "pre", "positions": "rotary", "norm_kind": "rms", "mlp": "swiglu", "embd_pdrop": 0.0,
               "resid_pdrop": 0.0, "mlp_bias": False}  # fmt: skip
_KIND: dict[NewerFamily, dict[str, Any]] = {
    "gpt_neox": {"norm": "pre", "positions": "rotary"},
    "opt": {"norm": "pre", "position_offset": 2, "layer_norm_epsilon": 1e-5, "embd_pdrop": 0.0},
    "llama": {name: value for name, value in _ROTARY_RMS.items() if name != "mlp_bias"},
    "mistral": {**_ROTARY_RMS, "qkv_bias": False, "proj_bias": False},
    "qwen2": {**_ROTARY_RMS, "qkv_bias": True, "proj_bias": False},
    "qwen3": {**_ROTARY_RMS, "qk_norm": True},
}
_ACTIVATION: dict[NewerFamily, str] = {"gpt_neox": "hidden_act", "opt": "activation_function"}
_USUAL_ACTIVATION = {"gpt_neox": "gelu", "opt": "relu"}
_ACTIVATIONS = {"gelu": "gelu", "relu": "relu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
                "gelu_fast": "gelu_tanh"}  # fmt: skip
_THEIR_ACTIVATION = {"gelu": "gelu", "relu": "relu", "gelu_tanh": "gelu_new"}
# What a file may say of what this decoder does not have; the first is what a file says that leaves it out.
_GATED: dict[str, tuple[Any, ...]] = {"hidden_act": ("silu",)}
_NEUTRAL: dict[NewerFamily, dict[str, tuple[Any, ...]]] = {
    "gpt_neox": {},
    "opt": {
        "do_layer_norm_before": (True,),
        "_remove_final_layer_norm": (False,),
        "layer_norm_elementwise_affine": (True,),
        "layerdrop": (0.0, 0),
    },
    "llama": {**_GATED, "rope_interleaved": (False,)},
    "mistral": _GATED,
    "qwen2": _GATED,
    "qwen3": _GATED,
}
# In any family: their masks ask for it, though no class has a field of this name.
NEUTRAL_EVERYWHERE: dict[str, tuple[Any, ...]] = {"is_causal": (True,)}
_WHY = {"do_layer_norm_before": " (OPT-350M alone normalises after each block, and has narrower embeddings)"}
_SLIDING = ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types")
# Of no consequence for what a model computes: about files, tokens, training, generation and other heads.
_NOTES = """
    architectures model_type transformers_version torch_dtype dtype use_cache initializer_range init_std
    pretraining_tp bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id decoder_start_token_id id2label
    label2id num_labels problem_type classifier_dropout output_hidden_states output_attentions return_dict
    torchscript use_bfloat16 chunk_size_feed_forward is_decoder finetuning_task task_specific_params tokenizer_class
    prefix attn_implementation activation_dropout gradient_checkpointing gpt_modules model_max_length
    max_sequence_length is_llama_config transformers.js_config unsloth_version unsloth_fixed max_length min_length
    do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p
    repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id
    remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
""".split()  # noqa: SIM905


def newer_family_of(config: DecoderConfig) -> NewerFamily | None:
    """The first of these families whose config.json says all of a decoder but its dropout; None: there is none."""
    return next((family for family in _SPELLING if _says_all(config, family)), None)


def _says_all(config: DecoderConfig, family: NewerFamily) -> bool:
    try:
        again = read_newer(write_newer(config, family), family, Path(CONFIG_FILE))
        return _function(DecoderConfig.from_dict(again)) == _function(config)
    except UserError:
        return False


def _function(config: DecoderConfig) -> DecoderConfig:
    """The decoder as a function: without dropout and first weights, and with its usual sizes spelt out."""
    return dataclasses.replace(
        config.without_dropout(),
        init="gpt2",
        n_inner=config.inner_width,
        n_kv_head=config.kv_heads,
        head_size=config.head_width,
        attention=config.layers,
        window=config.window if "banded" in config.layers else 1,
    )


def lost_dropout(config: DecoderConfig, family: NewerFamily) -> dict[str, float]:
    """The probabilities that config.json of the family has no word for."""
    again = DecoderConfig.from_dict(read_newer(write_newer(config, family), family, Path(CONFIG_FILE)))
    names = ("embd_pdrop", "attn_pdrop", "resid_pdrop")
    return {name: getattr(config, name) for name in names if getattr(again, name) != getattr(config, name)}


def newer_spelling(family: NewerFamily) -> dict[str, str]:
    """Our field -> theirs."""
    spelling = {ours: theirs for theirs, names in _SPELLING[family].items() for ours in names}
    return {**spelling, "window": "sliding_window"}


def write_newer(config: DecoderConfig, family: NewerFamily) -> dict[str, Any]:
    """The fields of config.json that say what the decoder is."""
    sizes = {"n_inner": config.inner_width, "n_kv_head": config.kv_heads, "head_size": config.head_width}
    fields = {theirs: sizes.get(names[0], getattr(config, names[0])) for theirs, names in _SPELLING[family].items()}
    if "hidden_dropout" in fields and config.embd_pdrop != config.resid_pdrop:
        fields["hidden_dropout"] = 0.0
    fields |= {name: allowed[0] for name, allowed in _NEUTRAL[family].items() if name != "rope_interleaved"}
    if family in _ACTIVATION:
        fields[_ACTIVATION[family]] = _THEIR_ACTIVATION.get(config.mlp)
    if family == "opt":
        # Said even where there is none: their default is token 1, which their classifier would pass over.
        return {"model_type": family, **fields, "word_embed_proj_dim": config.n_embd, "pad_token_id": None}
    return {"model_type": family, **fields, **write_rope(config, family == "gpt_neox"), **_write_layers(config, family)}


def _write_layers(config: DecoderConfig, family: NewerFamily) -> dict[str, Any]:
    banded = "banded" in config.layers
    if family == "mistral":
        return {"sliding_window": config.window if banded else None}
    if not family.startswith("qwen"):
        return {}
    dense = config.layers.index("banded") if banded else config.n_layer
    kinds = ["sliding_attention" if kind == "banded" else "full_attention" for kind in config.layers]
    window = {"sliding_window": config.window if banded else None, "use_sliding_window": banded}
    return {**window, "max_window_layers": dense, "layer_types": kinds}


def read_newer(document: Mapping[str, Any], family: NewerFamily, path: Path) -> dict[str, Any]:
    """The fields of a `DecoderConfig`.

    Raises:
        UserError: naming `path` and the field, for what this decoder cannot be.
    """
    check_newer(document, family, path)
    values: dict[str, Any] = {}
    for theirs, names in _SPELLING[family].items():
        values |= dict.fromkeys(names, document.get(theirs, _DEFAULTS[family][theirs]))
    _leave_out_usual(values)
    if family in _ACTIVATION:
        name = _ACTIVATION[family]
        found = document.get(name, _USUAL_ACTIVATION[family])
        if found not in list(_ACTIVATIONS):
            raise UserError(f"{path}: {name}: found {shown(found)}, expected one of {', '.join(_ACTIVATIONS)}")
        values["mlp"] = _ACTIVATIONS[found]
    if family != "opt":
        values |= read_rope(document, family == "gpt_neox", path)
        values |= _read_layers(document, family, path)
    elif document.get("word_embed_proj_dim") not in (None, values["n_embd"]):
        found = shown(document["word_embed_proj_dim"])
        raise UserError(f"{path}: word_embed_proj_dim: found {found}, expected hidden_size ({shown(values['n_embd'])})")
    return {**values, **_KIND[family]}


def _leave_out_usual(values: dict[str, Any]) -> None:
    """A size that is the usual one is none of its own, however a file says it."""
    width, heads = values["n_embd"], values["n_head"]
    whole = type(width) is int and type(heads) is int and heads > 0
    usual = {"n_inner": 4 * width, "n_kv_head": heads, "head_size": width // heads} if whole else {}
    for name, value in usual.items():
        if values.get(name) == value and not (name == "head_size" and width % heads):
            values[name] = None


def check_newer(document: Mapping[str, Any], family: NewerFamily, path: Path) -> None:
    """Raises `UserError` for what a file says beyond what this decoder computes."""
    neutral = _NEUTRAL[family] | NEUTRAL_EVERYWHERE
    for name, allowed in neutral.items():
        found = document.get(name, allowed[0])
        if not any(type(found) is type(one) and found == one for one in allowed):
            raise UserError(f"{path}: {name}: found {shown(found)}, expected {allowed[0]!r}{_WHY.get(name, '')}")
    fields = [*_SPELLING[family], *neutral, *([_ACTIVATION[family]] if family in _ACTIVATION else [])]
    fields += ["word_embed_proj_dim"] if family == "opt" else NEOX_FIELDS if family == "gpt_neox" else ROPE_FIELDS
    fields += {"mistral": _SLIDING[:1], "qwen2": _SLIDING, "qwen3": _SLIDING}.get(family, ())
    for name, value in document.items():
        if (
            value not in (None, False, "", [], {})
            and name not in fields
            and name not in _NOTES
            and not name.startswith("_")
        ):
            near = ", ".join(get_close_matches(name, fields))
            known = "expected no field of this name" + (f" (near to it: {near})" if near else "")
            raise UserError(f"{path}: {at('', name)}: found {shown(value)}, {known}")


def _read_layers(document: Mapping[str, Any], family: NewerFamily, path: Path) -> dict[str, Any]:
    window = document.get("sliding_window", 4096)
    if family == "mistral":
        return {} if window is None else {"attention": ["banded"], "window": window}
    if not family.startswith("qwen"):
        return {}
    layers = document.get("num_hidden_layers", _DEFAULTS[family]["num_hidden_layers"])
    slides, dense = document.get("use_sliding_window", False), document.get("max_window_layers", 28)
    for name, found, kind, expected in (
        ("use_sliding_window", slides, bool, "true or false"),
        ("max_window_layers", dense, int, "a whole number"),
    ):
        if type(found) is not kind:
            raise UserError(f"{path}: {name}: found {shown(found)}, expected {expected}")
    kinds, sliding = document.get("layer_types"), slides and window is not None
    if kinds is None:
        if type(layers) is not int or not 0 < layers <= MOST_LAYERS:
            return {}  # which the decoder refuses
        kinds = ["sliding_attention" if sliding and layer >= dense else "full_attention" for layer in range(layers)]
    return _layers_of(kinds, layers, window if sliding else None, path)


def _layers_of(kinds: Any, layers: Any, window: Any, path: Path) -> dict[str, Any]:
    ours = {"full_attention": "dense", **({} if window is None else {"sliding_attention": "banded"})}
    if not isinstance(kinds, list) or any(kind not in list(ours) for kind in kinds):
        words = " and ".join(ours) + ("" if window is not None else " where use_sliding_window is false")
        raise UserError(f"{path}: layer_types: found {shown(kinds)}, expected a list of {words}")
    if len(kinds) != layers:
        raise UserError(f"{path}: layer_types: found {len(kinds)} layers, expected num_hidden_layers = {shown(layers)}")
    found = [ours[kind] for kind in kinds]
    return {"attention": found, **({"window": window} if "banded" in found else {})}
