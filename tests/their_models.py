"""Small models of `transformers` with random weights, one of each family, and the same in ours."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gpt_modules.backbone import GPT, DecoderConfig, RopeScaling

VOCAB = 41
_SIZES = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
          "max_position_embeddings": 64}  # fmt: skip
_OURS = {"vocab_size": VOCAB, "n_positions": 64, "n_layer": 2, "n_head": 4, "n_embd": 32, "n_inner": 48,
         "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}  # fmt: skip
_GATED = {"intermediate_size": 48, "num_key_value_heads": 2, "rms_norm_eps": 1e-5}
_LLAMA = {**_OURS, "positions": "rotary", "norm_kind": "rms", "mlp": "swiglu", "n_kv_head": 2, "tied": False,
          "qkv_bias": False, "proj_bias": False, "mlp_bias": False}  # fmt: skip
_NEOX = {**_OURS, "positions": "rotary", "mlp": "gelu", "rope_fraction": 0.5, "tied": False}
_ROPE = {"rope_theta": 5_000.0}
_OF_16 = {"original_max_position_embeddings": 16}
_LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_YARN = {"factor": 4.0, "beta_fast": 8.0}

# Class of transformers, their settings, ours.
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gpt_neox": (
        "GPTNeoX",
        {"intermediate_size": 48, "rope_parameters": {**_ROPE, "rope_type": "default", "partial_rotary_factor": 0.5}},
        {**_NEOX, **_ROPE, "parallel_residual": True},
    ),
    "gpt_neox, one after the other": (
        "GPTNeoX",
        {"intermediate_size": 48, "use_parallel_residual": False,
         "rope_parameters": {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5}},
        _NEOX,
    ),
    "opt": (
        "OPT",
        {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0},
        {**_OURS, "mlp": "relu", "position_offset": 2},
    ),
    "llama": (
        "Llama",
        {**_GATED, "rope_parameters": {**_ROPE, "rope_type": "llama3", **_OF_16, **_LLAMA3}},
        {**_LLAMA, **_ROPE, "rope_scaling": RopeScaling("llama3", original_positions=16, **_LLAMA3)},
    ),
    "llama, biased and tied": (
        "Llama",
        {**_GATED, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "num_key_value_heads": 1,
         "rope_parameters": {**_ROPE, "rope_type": "linear", "factor": 2.0}},
        {**_LLAMA, **_ROPE, "qkv_bias": True, "proj_bias": True, "mlp_bias": True, "tied": True, "n_kv_head": 1,
         "rope_scaling": RopeScaling("linear", 2.0)},
    ),
    "mistral": ("Mistral", {**_GATED, "sliding_window": 5}, {**_LLAMA, "attention": ("banded",), "window": 5}),
    "qwen2": (
        "Qwen2",
        {**_GATED, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
        {**_LLAMA, "qkv_bias": True, "attention": ("dense", "banded"), "window": 5},
    ),
    "qwen3": (
        "Qwen3",
        {**_GATED, "head_dim": 16,
         "rope_parameters": {**_ROPE, "rope_type": "yarn", **_OF_16, **_YARN}},
        {**_LLAMA, **_ROPE, "head_size": 16, "qk_norm": True,
         "rope_scaling": RopeScaling("yarn", original_positions=16, **_YARN)},
    ),
}  # fmt: skip


def their_model(transformers: ModuleType, family: str) -> Any:
    """No bias is 0 and no norm 1 throughout, where a mistake in them would not show."""
    name, settings, _ = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**_SIZES, **settings})
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def our_config(family: str) -> DecoderConfig:
    """Its sizes in our words."""
    return DecoderConfig(**FAMILIES[family][2])


def our_model(theirs: Any, family: str) -> GPT:
    """The same weights."""
    model = GPT(our_config(family)).eval()
    state = theirs.state_dict()
    model.load_state_dict({name: _found(state, name) for name in model.state_dict()})
    return model


# Ours: theirs in the first of these spellings that is there; several are one on top of the other.
_TRUNK = {
    "wte": ["gpt_neox.embed_in", "model.decoder.embed_tokens", "model.embed_tokens"],
    "wpe": ["model.decoder.embed_positions"],
    "ln_f": ["gpt_neox.final_layer_norm", "model.decoder.final_layer_norm", "model.norm"],
}
_BLOCK: dict[str, list[str]] = {
    "ln_1": ["input_layernorm", "self_attn_layer_norm"],
    "attn.qkv": ["attention.query_key_value", "self_attn.q_proj self_attn.k_proj self_attn.v_proj"],
    "attn.proj": ["attention.dense", "self_attn.o_proj", "self_attn.out_proj"],
    "attn.q_norm": ["self_attn.q_norm"],
    "attn.k_norm": ["self_attn.k_norm"],
    "ln_2": ["post_attention_layernorm", "final_layer_norm"],
    "mlp.fc": ["mlp.dense_h_to_4h", "fc1", "mlp.gate_proj mlp.up_proj"],
    "mlp.proj": ["mlp.dense_4h_to_h", "fc2", "mlp.down_proj"],
}


def _found(state: dict[str, Tensor], ours: str) -> Tensor:
    module, _, kind = ours.removeprefix("decoder.").rpartition(".")
    if not module.startswith("blocks."):
        names = _TRUNK.get(module, [module])
    else:
        layer, _, part = module.removeprefix("blocks.").partition(".")
        within = [
            name
            for name in ("gpt_neox", "model.decoder", "model")
            if any(key.startswith(f"{name}.layers") for key in state)
        ]
        names = [" ".join(f"{within[0]}.layers.{layer}.{each}" for each in name.split()) for name in _BLOCK[part]]
    chosen = next(name for name in names if f"{name.split()[0]}.{kind}" in state)
    tensor = torch.cat([state[f"{name}.{kind}"] for name in chosen.split()])
    if "query_key_value" in chosen:  # by head: its query, its key, its value
        tensor = tensor.view(4, 3, 8, *tensor.shape[1:]).transpose(0, 1).flatten(0, 2)
    return tensor
