"""Angles against `transformers`, and what turning must not change."""

from types import ModuleType
from typing import Any

import pytest
import torch

from gpt_modules.backbone.rotary import RopeScaling, Rotary, frequencies, rotate
from gpt_modules.errors import UserError

LLAMA3 = RopeScaling("llama3", 8.0, original_positions=64, low_freq_factor=1.0, high_freq_factor=4.0)
YARN = RopeScaling("yarn", 4.0, original_positions=64)
THEIRS = [
    (None, {"rope_type": "default"}),
    (RopeScaling("linear", 2.5), {"rope_type": "linear", "factor": 2.5}),
    (LLAMA3, {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}),
    (YARN, {"rope_type": "yarn", "factor": 4.0}),
    (
        RopeScaling("yarn", 4.0, 64, beta_fast=16.0, beta_slow=2.0, attention_factor=1.5),
        {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.5},
    ),
]


@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize(("scaling", "fields"), THEIRS)
def test_angles_are_those_of_transformers_to_the_last_bit(
    scaling: RopeScaling | None, fields: dict[str, Any], size: int, transformers: ModuleType
) -> None:
    original = {} if fields["rope_type"] in ("default", "linear") else {"original_max_position_embeddings": 64}
    config = transformers.LlamaConfig(
        hidden_size=2 * size, num_attention_heads=2, max_position_embeddings=512,
        rope_parameters={"rope_theta": 5_000.0, **fields, **original},
    )  # fmt: skip
    theirs = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    positions = torch.tensor([[0, 1, 63, 64, 511], [5, 5, 100_000, 2, 3]])
    cos, sin = theirs(torch.zeros(1), positions)
    rotation = Rotary(size, 5_000.0, scaling)(positions)
    assert torch.equal(rotation.cos[..., 0, :], cos)
    assert torch.equal(rotation.sin[..., 0, size // 2 :], sin[..., size // 2 :])
    assert torch.equal(rotation.sin[..., 0, : size // 2], -sin[..., : size // 2])


@pytest.mark.parametrize("size", [4, 8])
def test_a_product_knows_the_distance_only_and_nothing_grows(size: int) -> None:
    rotary, query, key = Rotary(size, 100.0, None), torch.randn(1, 1, 3, 8), torch.randn(1, 1, 3, 8)
    far = [[3, 0], [13, 10], [1003, 1000]]
    products = [
        (rotate(query, rotary(torch.tensor([[a]]))) * rotate(key, rotary(torch.tensor([[b]])))).sum(-1) for a, b in far
    ]
    for product in products[1:]:
        torch.testing.assert_close(product, products[0], atol=1e-4, rtol=0)
    turned = rotate(query, rotary(torch.tensor([[7]])))
    torch.testing.assert_close(turned.norm(dim=-1), query.norm(dim=-1))
    assert torch.equal(turned[..., size:], query[..., size:]), "the rest stands"
    assert torch.equal(rotate(query, rotary(torch.tensor([[0]]))), query)


def test_a_cast_of_the_heads_does_not_reach_the_angles() -> None:
    rotation, heads = Rotary(8, 1e4, None)(torch.tensor([[1001]])), torch.randn(1, 1, 2, 8).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = Rotary(8, 1e4, None)(torch.tensor([[1001]]))
    assert torch.equal(rotation.cos, inside.cos)
    assert rotate(heads, rotation).dtype == torch.bfloat16
    assert torch.equal(rotate(heads, rotation), rotate(heads.float(), rotation).bfloat16())


def test_frequencies_are_made_on_the_cpu_even_of_a_model_without_weights() -> None:
    with torch.device("meta"):
        assert Rotary(8, 1e4, LLAMA3).frequencies.device.type == "cpu"
    assert torch.equal(frequencies(8, 1e4, None)[0], torch.tensor([1.0, 0.1, 0.01, 0.001]))


def test_of_llama3_fast_angles_stay_and_slow_ones_are_divided() -> None:
    plain, scaled = frequencies(64, 1e4, None)[0], frequencies(64, 1e4, LLAMA3)[0]
    turns = 64 * plain / (2 * torch.pi)
    assert torch.equal(scaled[turns > 4], plain[turns > 4])
    torch.testing.assert_close(scaled[turns < 1], plain[turns < 1] / 8)
    between = (turns > 1) & (turns < 4)
    assert ((scaled < plain) & (scaled > plain / 8))[between].all()
    assert between.any()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "dynamic", "factor": 2.0}, "kind: found 'dynamic', expected one of linear, llama3, yarn"),
        ({"kind": "linear", "factor": 0.0}, "factor: found 0.0, expected a finite number above 0"),
        ({"kind": "linear", "factor": 2.0, "beta_fast": 3.0}, "beta_fast: found 3.0, expected none, as linear has no"),
        ({"kind": "yarn", "factor": 2.0}, "original_positions: found none, expected one, which yarn needs"),
        ({"kind": "yarn", "factor": 2.0, "original_positions": 9.5}, "original_positions: found 9.5, expected a whole"),
        (
            {"kind": "llama3", "factor": 2.0, "original_positions": 9, "low_freq_factor": 4, "high_freq_factor": 4},
            "high_freq_factor: found 4, expected more than low_freq_factor (4)",
        ),
        (
            {"kind": "yarn", "factor": 2.0, "original_positions": 9, "beta_fast": 1.0, "beta_slow": 2.0},
            "beta_fast: found 1.0, expected more than beta_slow (2.0)",
        ),
    ],
)
def test_refusals(values: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    with pytest.raises(UserError) as caught:
        RopeScaling(**values)
    assert str(caught.value).startswith(message)
