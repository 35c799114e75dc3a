"""Rotary positions in every spelling of config.json, against the configurations of `transformers`."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from gpt_modules.backbone.config import DecoderConfig
from gpt_modules.backbone.folders.rope_fields import read_rope, write_rope
from gpt_modules.backbone.rotary import RopeScaling, frequencies
from gpt_modules.errors import UserError

PATH = Path("config.json")
SIZES = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 4096}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 1024}
SPELLINGS: list[dict[str, Any]] = [
    {},
    {"rope_theta": 1e6},
    {"rope_scaling": None, "rope_theta": 5e5},
    {"rope_scaling": {"type": "linear", "factor": 2.5}},
    {"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 2}, "rope_theta": 3e4},
    {"rope_scaling": {"rope_type": "llama3", **LLAMA3}, "rope_theta": 5e5},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 2e4}},
    {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}},
    {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}},
    {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "beta_fast": 16,
                      "beta_slow": 2, "attention_factor": 1.3, "truncate": True}},
    {"rope_scaling": {"type": "yarn", "factor": 2.0}},
    {"rope_scaling": {"rope_type": "default"}},
]  # fmt: skip


def ours(values: dict[str, Any], size: int) -> tuple[torch.Tensor, float]:
    config = DecoderConfig.from_dict({"n_positions": 4096, "n_embd": 64, "n_head": 4, **values})
    return frequencies(int(size * config.rope_fraction), config.rope_theta, config.rope_scaling)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fields", SPELLINGS)
def test_angles_are_those_of_transformers_and_come_back(fields: dict[str, Any], transformers: ModuleType) -> None:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    theirs = LlamaRotaryEmbedding(transformers.LlamaConfig(**SIZES, **fields))
    values = read_rope({**SIZES, **fields}, False, PATH)
    found, sharper = ours(values, 16)
    assert torch.equal(found, theirs.inv_freq)
    assert sharper == pytest.approx(theirs.attention_scaling)
    config = DecoderConfig.from_dict({"n_positions": 4096, "n_embd": 64, "n_head": 4, **values})
    again = read_rope({**SIZES, **write_rope(config, False)}, False, PATH)
    assert DecoderConfig.from_dict({"n_positions": 4096, "n_embd": 64, "n_head": 4, **again}) == config
    back = LlamaRotaryEmbedding(transformers.LlamaConfig(**SIZES, **write_rope(config, False)))
    assert torch.equal(back.inv_freq, found)


@pytest.mark.parametrize(
    "fields",
    [{}, {"rotary_pct": 0.5, "rotary_emb_base": 20000}, {"rope_scaling": {"type": "linear", "factor": 2.0}},
     {"rope_parameters": {"rope_type": "default", "rope_theta": 3e4, "partial_rotary_factor": 1.0}}],
)  # fmt: skip
def test_gpt_neox_has_words_of_its_own(fields: dict[str, Any], transformers: ModuleType) -> None:
    from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding

    theirs = GPTNeoXRotaryEmbedding(transformers.GPTNeoXConfig(**SIZES, **fields))
    values = read_rope({**SIZES, **fields}, True, PATH)
    assert torch.equal(ours(values, 16)[0], theirs.inv_freq)
    config = DecoderConfig.from_dict({"n_positions": 4096, "n_embd": 64, "n_head": 4, **values})
    assert ours(read_rope({**SIZES, **write_rope(config, True)}, True, PATH), 16)[0].equal(theirs.inv_freq)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling.rope_type: found 'dynamic', expected"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor: missing, expected a number"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "rope_scaling.factor: found '2', expected"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "mscale": 1.0}}, "rope_scaling.mscale: found 1.0, expected"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": False}}, "rope_scaling.truncate: found False, "),
        ({"rope_scaling": [2.0]}, "rope_scaling: found [2.0], expected a mapping of keys"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: found 0.5, expected 1.0"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "rope_parameters.full_attention: found "),
    ],
)  # fmt: skip
def test_what_is_not_computed_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_rope({**SIZES, **fields}, False, PATH)
    assert str(caught.value).startswith(f"config.json: {message}")


def test_a_configuration_says_its_stretch_in_their_words() -> None:
    config = DecoderConfig(positions="rotary", rope_scaling=RopeScaling("linear", 4.0))
    assert write_rope(config, False) == {"rope_theta": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}
