"""Sizes against the published counts, and every refusal in one line."""

import dataclasses
import io
import json

import pytest
import torch
from their_models import FAMILIES, our_config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gpt_modules.backbone import GPT, DecoderConfig, RopeScaling
from gpt_modules.backbone.config import GPT_FIELDS

GPT1 = DecoderConfig(vocab_size=40478, n_positions=512, norm="post", init="gpt1")


# Brown et al. 2020, table 2.1: layers, width, heads, and the count that its "n_params" rounds. Two rows cannot be built
# as printed: XL's 24 heads of 128 make 3,072, not its width of 2,048 (16 heads do, and give the 1.3 billion), and 13B's
# 5,140 is not 40 heads of 128 (5,120 is).
GPT3 = {
    "Small": (12, 768, 12, 125.2e6),
    "Medium": (24, 1024, 16, 355.9e6),
    "Large": (24, 1536, 16, 760.3e6),
    "XL": (24, 2048, 16, 1_315.7e6),
    "2.7B": (32, 2560, 32, 2_651.6e6),
    "6.7B": (32, 4096, 32, 6_658e6),
    "13B": (40, 5120, 40, 12_853e6),
    "175B": (96, 12288, 96, 174_604e6),
}
BANDED = DecoderConfig(n_layer=5, n_embd=24, n_head=2, attention=("dense", "banded"), window=4, qkv_bias=False)

LLAMA = DecoderConfig(
    n_embd=24, n_head=6, n_kv_head=2, n_inner=40, positions="rotary", norm_kind="rms", mlp="swiglu", qkv_bias=False,
    rope_scaling=RopeScaling("linear", 2.0),
)  # fmt: skip


def built(config: DecoderConfig) -> GPT:
    with torch.device("meta"):
        return GPT(config)


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (DecoderConfig(), 124_439_808),
        (DecoderConfig(n_layer=24, n_head=16, n_embd=1024), 354_823_168),
        (DecoderConfig(n_layer=36, n_head=20, n_embd=1280), 774_030_080),
        (DecoderConfig(n_layer=48, n_head=25, n_embd=1600), 1_557_611_200),
        (GPT1, 116_534_784),
    ],
)
def test_parameter_counts_are_the_released_ones(config: DecoderConfig, count: int) -> None:
    assert sum(parameter.numel() for parameter in built(config).parameters()) == count
    assert config.n_params() == count


@pytest.mark.parametrize("size", GPT3)
def test_the_sizes_of_gpt3_build_without_memory_or_chance(size: str) -> None:
    layers, width, heads, count = GPT3[size]
    config = DecoderConfig(
        n_positions=2048, n_layer=layers, n_head=heads, n_embd=width, attention=("dense", "banded"), qkv_bias=True
    )
    state = torch.get_rng_state()
    parameters = list(built(config).parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.is_meta for parameter in parameters)
    assert sum(parameter.numel() for parameter in parameters) == config.n_params()
    assert config.n_params() == pytest.approx(count, rel=5e-4)


def test_parameters_without_biases_of_queries_keys_and_values() -> None:
    assert sum(parameter.numel() for parameter in built(BANDED).parameters()) == BANDED.n_params()


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_and_operations_of_every_family_are_counted(family: str) -> None:
    """Operations as torch counts them, which knows no band."""
    config, context = our_config(family), 24
    assert sum(parameter.numel() for parameter in built(config).parameters()) == config.n_params()
    model, counter = GPT(config), FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        model(torch.ones(2, context, dtype=torch.long)).sum().backward()
    dense = dataclasses.replace(config, attention=("dense",))
    assert counter.get_total_flops() == 2 * context * dense.flops_per_token(context)


# What was released has so many: tokens, layers, heads, of keys, width, of a head, between.
_BARE = dict.fromkeys(("qkv_bias", "proj_bias", "mlp_bias"), False)
_LLAMA = {"positions": "rotary", "norm_kind": "rms", "mlp": "swiglu", **_BARE}
_OF = ("vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd", "head_size", "n_inner")
RELEASED = {
    "pythia-160m": ((50304, 12, 12, 12, 768, 64, 3072), {"positions": "rotary", "tied": False}, 162_322_944),
    "llama-2-7b": ((32000, 32, 32, 32, 4096, 128, 11008), {**_LLAMA, "tied": False}, 6_738_415_616),
    "smollm2-135m": ((49152, 30, 9, 3, 576, 64, 1536), _LLAMA, 134_515_008),
    "qwen3-0.6b": ((151936, 28, 16, 8, 1024, 128, 3072), {**_LLAMA, "qk_norm": True}, 596_049_920),
}


@pytest.mark.parametrize("name", RELEASED)
def test_todays_decoders_have_the_parameters_that_were_released(name: str) -> None:
    sizes, switches, count = RELEASED[name]
    config = DecoderConfig.from_dict({**dict(zip(_OF, sizes, strict=True)), **switches})
    assert config.n_params() == count == sum(parameter.numel() for parameter in built(config).parameters())


def test_the_pattern_repeats_from_the_lowest_layer() -> None:
    assert BANDED.layers == ("dense", "banded", "dense", "banded", "dense")


@pytest.mark.parametrize(("context", "keys"), [(3, 5 * 3), (10, 3 * 10 + 2 * 4)])
def test_a_band_costs_no_more_than_its_window(context: int, keys: int) -> None:
    # Scores and weighted sums, forward and twice backward, a multiplication and an addition each: 2 x 3 x 2 C a key.
    assert BANDED.flops_per_token(context) - BANDED.flops_per_token(0) == 12 * 24 * keys


def test_flops_of_gpt2_small() -> None:
    assert DecoderConfig().flops_per_token(1024) == 854_438_400


@pytest.mark.parametrize("config", [GPT1, BANDED, LLAMA])
def test_plain_dict_and_back_through_json_and_a_checkpoint(config: DecoderConfig) -> None:
    kept = io.BytesIO()
    torch.save(config.to_dict(), kept)
    kept.seek(0)
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict() == torch.load(kept, weights_only=True)
    assert DecoderConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_what_gpt_has_no_word_for_is_written_where_it_says_something_only() -> None:
    """So that files and digests of GPT's own do not change."""
    assert tuple(DecoderConfig().to_dict()) == GPT_FIELDS
    said = {"positions", "rope_scaling", "norm_kind", "mlp", "n_inner", "n_kv_head"}
    assert LLAMA.to_dict().keys() == {*GPT_FIELDS, *said}
    assert LLAMA.to_dict()["rope_scaling"]["factor"] == 2.0


def test_a_list_makes_the_same_hashable_config() -> None:
    listed = DecoderConfig.from_dict({"attention": ["dense", "banded"]})
    assert listed == DecoderConfig(attention=("dense", "banded"))
    assert len({listed, DecoderConfig(attention=("dense", "banded"))}) == 1


def test_without_dropout_changes_nothing_else() -> None:
    bare = GPT1.without_dropout()
    assert (bare.embd_pdrop, bare.attn_pdrop, bare.resid_pdrop) == (0.0, 0.0, 0.0)
    assert dataclasses.replace(bare, embd_pdrop=0.1, attn_pdrop=0.1, resid_pdrop=0.1) == GPT1
