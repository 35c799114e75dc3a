"""One decoder of each family at the same width: our configuration, and the model of transformers that is the same."""

from typing import Any

FAMILIES = ("gpt2", "llama", "gpt_neox")
_LLAMA = {"positions": "rotary", "norm_kind": "rms", "mlp": "swiglu", "qkv_bias": False, "proj_bias": False,
          "mlp_bias": False}  # fmt: skip
_NEOX = {"positions": "rotary", "rope_fraction": 0.25, "mlp": "gelu", "parallel_residual": True}


def _heads(family: str, width: int) -> int:
    """Of 64 channels; Llama's of 32, and a quarter as many of keys."""
    return max(1, width // (32 if family == "llama" else 64))


def _key_heads(width: int) -> int:
    return max(1, _heads("llama", width) // 4)


def _inner(width: int) -> int:
    """Of Llama: 8/3 as wide, so that three matrices are two of four times the width, to the next 16."""
    return -(-8 * width // 3 // 16) * 16


def our_config(family: str, vocab_size: int, n_positions: int, n_layer: int, n_embd: int) -> Any:
    """Without dropout."""
    from gpt_modules.backbone import DecoderConfig

    switches: dict[str, Any] = {}
    if family == "llama":
        switches = {**_LLAMA, "n_kv_head": _key_heads(n_embd), "n_inner": _inner(n_embd), "tied": False}
    if family == "gpt_neox":
        switches = {**_NEOX, "tied": False}
    return DecoderConfig(vocab_size, n_positions, n_layer, _heads(family, n_embd), n_embd, **switches).without_dropout()


def their_model(family: str, vocab_size: int, n_positions: int, n_layer: int, n_embd: int) -> Any:
    """Of as many parameters as ours, which is checked."""
    import transformers

    none = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    if family == "gpt2":
        sizes = {"n_positions": n_positions, "n_layer": n_layer, "n_embd": n_embd, "n_head": _heads(family, n_embd)}
        drops = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0)
        config = transformers.GPT2Config(vocab_size=vocab_size, **sizes, **drops, **none)
        model = transformers.GPT2LMHeadModel(config)
    else:
        llama = family == "llama"
        shape = {"hidden_size": n_embd, "num_hidden_layers": n_layer, "num_attention_heads": _heads(family, n_embd)}
        shape |= {"max_position_embeddings": n_positions, "intermediate_size": _inner(n_embd) if llama else 4 * n_embd}
        name = "Llama" if llama else "GPTNeoX"
        own = {"num_key_value_heads": _key_heads(n_embd)} if llama else {}
        config = getattr(transformers, f"{name}Config")(vocab_size=vocab_size, **shape, **own, **none)
        model = getattr(transformers, f"{name}ForCausalLM")(config)
    counted = our_config(family, vocab_size, n_positions, n_layer, n_embd).n_params()
    assert sum(parameter.numel() for parameter in model.parameters()) == counted
    return model
