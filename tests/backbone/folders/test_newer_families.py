"""GPT-NeoX, OPT, Llama, Mistral and Qwen exchanged with `transformers` in both directions, and what is not opened."""

import dataclasses
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from gpt_modules.backbone import (
    GPT,
    DecoderConfig,
    LabellingModel,
    LoRAConfig,
    RewardModel,
    RopeScaling,
    generate,
    load_pretrained,
    read_config,
    save_pretrained,
)
from gpt_modules.backbone.folders.adapter import save_adapter
from gpt_modules.backbone.folders.model_families import family_of
from gpt_modules.backbone.folders.newer_families import newer_family_of
from gpt_modules.backbone.lora import add_lora, merge_lora
from gpt_modules.errors import UserError
from gpt_modules.labelling import Labelling

SIZES: dict[str, Any] = {"vocab_size": 41, "n_positions": 24, "n_layer": 3, "n_head": 4, "n_embd": 32}
STILL: dict[str, Any] = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
LLAMA: dict[str, Any] = {
    **SIZES, **STILL, "positions": "rotary", "norm_kind": "rms", "mlp": "swiglu", "n_inner": 48, "n_kv_head": 2,
    "qkv_bias": False, "proj_bias": False, "mlp_bias": False, "tied": False, "layer_norm_epsilon": 1e-6,
}  # fmt: skip
NEOX: dict[str, Any] = {**SIZES, **STILL, "positions": "rotary", "mlp": "gelu", "tied": False, "rope_fraction": 0.25,
                        "parallel_residual": True}  # fmt: skip
LLAMA3 = RopeScaling("llama3", 8.0, 16, 1.0, 4.0)
CONFIGS = {
    "gpt_neox": DecoderConfig(**NEOX),
    "gpt_neox, in line": DecoderConfig(
        **NEOX | {"parallel_residual": False, "rope_fraction": 1.0, "tied": True, "mlp": "gelu_tanh", "n_inner": 40}
    ),
    "opt": DecoderConfig(**{**SIZES, **STILL, "mlp": "relu", "position_offset": 2, "n_inner": 40}),
    "opt, untied": DecoderConfig(**{**SIZES, **STILL, "mlp": "gelu", "position_offset": 2, "tied": False}),
    "llama": DecoderConfig(**LLAMA),
    "llama, tied": DecoderConfig(
        **LLAMA | {"tied": True, "n_kv_head": None, "rope_theta": 5e5, "rope_scaling": LLAMA3}
    ),
    "llama, with biases": DecoderConfig(
        **LLAMA | {"qkv_bias": True, "proj_bias": True, "mlp_bias": True, "rope_scaling": RopeScaling("linear", 2.0)}
    ),
    "mistral": DecoderConfig(**LLAMA | {"attention": ("banded",), "window": 5, "head_size": 6}),
    "qwen2": DecoderConfig(**LLAMA | {"qkv_bias": True, "attention": ("dense", "banded", "banded"), "window": 4}),
    "qwen2, tied": DecoderConfig(
        **LLAMA | {"qkv_bias": True, "tied": True, "rope_scaling": RopeScaling("yarn", 4.0, 12)}
    ),
    "qwen3": DecoderConfig(**LLAMA | {"qk_norm": True, "head_size": 12, "tied": True}),
    "qwen3, banded": DecoderConfig(**LLAMA | {"qk_norm": True, "attention": ("banded", "dense"), "window": 3}),
}
NAMES = list(CONFIGS)
TOKENS = torch.randint(41, (3, 20), generator=torch.Generator().manual_seed(0))


def perturb(model: Any) -> Any:
    """Biases and norms start at 0 and 1, where a mistake in them would not show."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_their_class_opens_ours_and_we_open_theirs(name: str, tmp_path: Path, transformers: ModuleType) -> None:
    model = perturb(GPT(CONFIGS[name]))
    save_pretrained(tmp_path / "m", model)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    assert theirs.config.model_type == name.split(",")[0]
    assert close(model(TOKENS), theirs(TOKENS).logits)
    again = load_pretrained(tmp_path / "m", "gpt").eval()
    assert again.config == model.config
    assert torch.equal(again(TOKENS), model(TOKENS))
    theirs.save_pretrained(tmp_path / "t")  # in the words of their own version
    back = load_pretrained(tmp_path / "t", "gpt").eval()
    assert dataclasses.replace(back.config, init=model.config.init) == model.config
    assert close(back(TOKENS), theirs(TOKENS).logits)


@pytest.mark.parametrize("name", NAMES)
def test_greedy_answers_are_theirs(name: str, tmp_path: Path, transformers: ModuleType) -> None:
    model = perturb(GPT(CONFIGS[name]))
    save_pretrained(tmp_path / "m", model)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    answer = theirs.generate(
        TOKENS[:, :8], attention_mask=torch.ones(3, 8), max_new_tokens=12, do_sample=False, pad_token_id=0,
        eos_token_id=None,
    )  # fmt: skip
    found = generate(model, TOKENS[:, :8].tolist(), max_new_tokens=12, eos_id=None, temperature=0.0)
    assert torch.equal(found.tokens, answer[:, 8:])


@pytest.mark.parametrize("name", [name for name in NAMES if "," not in name])
def test_their_classifier_gives_our_raw_scores_and_back(name: str, tmp_path: Path, transformers: ModuleType) -> None:
    model = perturb(RewardModel(CONFIGS[name]))
    save_pretrained(tmp_path / "m", model)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "m").eval()
    raw = model.token_values(TOKENS)[:, -1] - model.head.linear.bias
    assert close(raw, torch.cat([theirs(row[None]).logits[:, 0] for row in TOKENS]))
    theirs.save_pretrained(tmp_path / "t")
    assert close(load_pretrained(tmp_path / "t", "reward").eval().token_values(TOKENS), model.token_values(TOKENS))
    task = Labelling("classification", ("no", "yes", "maybe"))
    labeller = perturb(LabellingModel(CONFIGS[name], task))
    save_pretrained(tmp_path / "l", labeller)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "l").eval()
    lengths, index = torch.full((3,), 20), torch.arange(3)[:, None]
    found = labeller(TOKENS, lengths, index)
    assert close(found, torch.cat([theirs(row[None]).logits for row in TOKENS]))


@pytest.mark.parametrize("name", [name for name in NAMES if "," not in name])
@pytest.mark.filterwarnings("ignore")
def test_peft_opens_low_rank_updates(name: str, tmp_path: Path, transformers: ModuleType) -> None:
    from peft import PeftModel

    model, lora = perturb(GPT(CONFIGS[name])), LoRAConfig(rank=3)
    save_pretrained(tmp_path / "base", model)
    add_lora(model.decoder, lora)
    perturb(model)
    save_pretrained(tmp_path / "moved", merge_lora(model))
    for parameter, kept in zip(load_pretrained(tmp_path / "base").parameters(), (
        p for n, p in model.named_parameters() if "lora_" not in n), strict=True):  # fmt: skip
        kept.data.copy_(parameter)  # what an adapter has no part of is the base's
    save_adapter(tmp_path / "adapter", model, lora, str(tmp_path / "base"))
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert close(model.eval()(TOKENS), theirs(TOKENS).logits)


@pytest.mark.parametrize("name", ["gpt_neox", "llama", "qwen3"])
def test_shards_of_half_precision_open(name: str, tmp_path: Path, transformers: ModuleType) -> None:
    model = perturb(GPT(CONFIGS[name])).bfloat16().float()
    save_pretrained(tmp_path / "m", model)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.bfloat16)
    theirs.save_pretrained(tmp_path / "t", max_shard_size="20KB")
    assert (tmp_path / "t" / "model.safetensors.index.json").is_file()
    opened = load_pretrained(tmp_path / "t", "gpt").eval()
    assert opened.head_weight.dtype == torch.float32
    assert torch.equal(opened(TOKENS), model(TOKENS))


def folder_of(name: str, tmp_path: Path, **fields: Any) -> Path:
    """As somebody else would have written it: our section is not in it."""
    save_pretrained(tmp_path / "m", GPT(CONFIGS[name]))
    path = tmp_path / "m" / "config.json"
    document = {**json.loads(path.read_text()), **fields}
    del document["gpt_modules"]
    path.write_text(json.dumps({field: value for field, value in document.items() if value != "left out"}))
    return tmp_path / "m"


OPT350 = r"do_layer_norm_before: found False, expected True (OPT-350M alone normalises after each block"
REFUSED = [
    ("opt", {"do_layer_norm_before": False}, OPT350),
    ("opt", {"word_embed_proj_dim": 16}, "word_embed_proj_dim: found 16, expected hidden_size (32)"),
    ("opt", {"_remove_final_layer_norm": True}, "_remove_final_layer_norm: found True, expected False"),
    ("opt", {"activation_function": "silu"}, "activation_function: found 'silu', expected one of gelu, relu"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act: found 'gelu', expected 'silu'"),
    ("llama", {"attention_multiplier": 0.1}, "attention_multiplier: found 0.1, expected no field of this name"),
    ("llama", {"attention_bais": True}, "attention_bais: found True, expected no field of this name (near to it: att"),
    ("llama", {"x" * 900: "y" * 900}, "'xxxxxxx"),
    ("llama", {"a\nb": 1}, r"'a\nb': found 1, expected no field of this name"),
    ("mistral", {"is_causal": None}, "is_causal: found None, expected True"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config: found {'bits': 4}, expected no field of"),
    ("llama", {"auto_map": {"AutoModel": "x"}}, "auto_map: found {'AutoModel': 'x'}, expected no field of this name"),
    ("llama", {"rope_interleaved": True}, "rope_interleaved: found True, expected False"),
    ("llama", {"num_key_value_heads": 3}, "num_key_value_heads: found 3, expected a divisor of n_head (4)"),
    ("llama", {"hidden_size": 0}, "hidden_size: found 0, expected a whole number"),
    ("mistral", {"sliding_window": 0}, "sliding_window: found 0, expected a whole number of at least 1"),
    ("qwen2", {"use_sliding_window": False}, "layer_types: found ['full_attention', 'sliding_attention', "),
    ("qwen2", {"layer_types": ["full_attention"]}, "layer_types: found 1 layers, expected num_hidden_layers = 3"),
    ("qwen2", {"layer_types": []}, "layer_types: found 0 layers, expected num_hidden_layers = 3"),
    ("qwen2", {"use_sliding_window": 1}, "use_sliding_window: found 1, expected true or false"),
    ("qwen3", {"use_sliding_window": "true"}, "use_sliding_window: found 'true', expected true or false"),
    ("qwen3", {"max_window_layers": 1.0}, "max_window_layers: found 1.0, expected a whole number"),
    ("qwen3", {"layer_types": ["chunked"] * 3}, "layer_types: found ['chunked', 'chunked', 'chunked'], expected a"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "fields", "message"), REFUSED)
def test_what_this_decoder_does_not_compute_is_refused(
    name: str, fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = folder_of(name, tmp_path, **fields)
    with pytest.raises(UserError) as caught:
        read_config(folder)
    assert str(caught.value).startswith(f"{folder}/config.json: {message}")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) - len(str(folder)) <= 400


CLASSES = ["GPT2", "OpenAIGPT", "GPTNeo", "GPTNeoX", "OPT", "Llama", "Mistral", "Qwen2", "Qwen3"]


@pytest.mark.parametrize("name", CLASSES)
def test_a_switch_that_is_on_unless_a_file_says_otherwise_is_understood_or_refused(
    name: str, tmp_path: Path, transformers: ModuleType
) -> None:
    """`is_causal` is no field of any class; the masks of all ask for it."""
    config = getattr(transformers, f"{name}Config")()
    on = {field for field, value in vars(config).items() if value is True and not field.startswith("_")}
    written, path = config.to_dict(), tmp_path / "config.json"
    path.write_text(json.dumps({**written, "is_causal": True}))
    plain, silent = read_config(tmp_path), set()
    for field in on | {"is_causal"}:
        path.write_text(json.dumps({**written, field: False}))
        try:
            silent |= {field} if read_config(tmp_path) == plain else set()
        except UserError:
            continue
    assert silent <= NOTES | {"summary_use_proj", "summary_proj_to_labels"}  # of heads, read with them


@pytest.mark.parametrize("name", [name for name in NAMES if "," not in name])
def test_every_number_of_their_configuration_is_understood_or_refused(
    name: str, tmp_path: Path, transformers: ModuleType
) -> None:
    """Each field of their class, set to another value: our decoder differs from the one without it, or there is none,
    or theirs says that the field makes no difference.
    """
    folder = folder_of(name, tmp_path)
    plain = read_config(folder)
    written = json.loads((folder / "config.json").read_text())
    kind = type(transformers.AutoConfig.from_pretrained(folder))
    known = {field.name for field in dataclasses.fields(kind)}
    silent = set()
    for field in sorted(known):
        default = written.get(field, getattr(kind(), field))
        value = not default if isinstance(default, bool) else default + 1 if isinstance(default, int) else 0.5
        (folder / "config.json").write_text(json.dumps({**written, field: value}))
        try:
            silent |= {field} if read_config(folder) == plain else set()
        except UserError:
            continue
    assert silent <= NOTES, silent - NOTES


# Fields of their classes that are about files, tokens, training, generation and other heads.
NOTES = {
    "architectures", "bos_token_id", "chunk_size_feed_forward", "classifier_dropout", "dtype", "eos_token_id",
    "id2label", "init_std", "initializer_range", "is_decoder", "label2id", "output_hidden_states", "pad_token_id",
    "pretraining_tp", "problem_type", "return_dict", "transformers_version", "use_cache", "output_attentions",
    # where no layer slides
    "max_window_layers", "sliding_window", "use_sliding_window",
}  # fmt: skip


def test_files_of_qwen_without_layer_types_slide_from_a_layer_on(tmp_path: Path, transformers: ModuleType) -> None:
    fields = {"layer_types": "left out", "max_window_layers": 2, "use_sliding_window": True, "sliding_window": 4}
    folder = folder_of("qwen2", tmp_path, **fields)
    assert read_config(folder).layers == ("dense", "dense", "banded")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert close(load_pretrained(folder, "gpt").eval()(TOKENS), theirs(TOKENS).logits)
    folder = folder_of("qwen2", tmp_path / "full", **fields | {"use_sliding_window": False})
    assert read_config(folder).layers == ("dense",) * 3


def test_names_of_old_releases_open(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for name, prefix in (("llama", "model."), ("gpt_neox", "gpt_neox.")):
        folder = folder_of(name, tmp_path / name)
        model = load_pretrained(folder, "gpt").eval()
        tensors = load_file(folder / "model.safetensors")
        old = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
        old["layers.0.attention.rotary_emb.inv_freq"] = torch.ones(2)
        save_file(old, folder / "model.safetensors")
        assert torch.equal(load_pretrained(folder, "gpt").eval()(TOKENS), model(TOKENS))


def test_dropout_that_a_family_has_no_word_for_comes_back(tmp_path: Path) -> None:
    for name in ("llama", "gpt_neox", "opt"):
        config = dataclasses.replace(CONFIGS[name], embd_pdrop=0.1, resid_pdrop=0.2, attn_pdrop=0.3, init="gpt1")
        save_pretrained(tmp_path / name, GPT(config))
        assert read_config(tmp_path / name) == config


def test_what_none_of_them_is_they_refuse_and_we_open(tmp_path: Path, transformers: ModuleType) -> None:
    mixed = [
        DecoderConfig(**LLAMA | {"attention": ("dense", "banded")}),  # Mistral bands all layers, Qwen has biases
        DecoderConfig(**LLAMA | {"norm_kind": "layer"}),
        DecoderConfig(**NEOX | {"norm_kind": "rms"}),
        DecoderConfig(**NEOX | {"qkv_bias": False}),
        DecoderConfig(**LLAMA | {"rope_fraction": 0.5}),
        DecoderConfig(**{**SIZES, **STILL, "tied": False}),
        DecoderConfig(**{**SIZES, **STILL, "position_offset": 1}),
    ]
    for number, config in enumerate(mixed):
        assert newer_family_of(config) is None
        model = perturb(GPT(config))
        save_pretrained(tmp_path / str(number), model)
        with pytest.raises(ValueError, match="gpt_modules"):
            transformers.AutoConfig.from_pretrained(tmp_path / str(number))
        again = load_pretrained(tmp_path / str(number), "gpt").eval()
        assert again.config == config
        assert torch.equal(again(TOKENS), model(TOKENS))
    assert family_of(CONFIGS["llama"], Labelling("multiple_choice")) == "gpt_modules"
