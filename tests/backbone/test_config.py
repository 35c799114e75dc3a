"""Sizes against the published counts, and every refusal in one line."""

import dataclasses

import jaxtyping
import pytest
import torch

from gpt_modules.backbone import GPT, DecoderConfig
from gpt_modules.errors import UserError

GPT1 = DecoderConfig(vocab_size=40478, n_positions=512, norm="post", init="gpt1")


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
    with torch.device("meta"):
        model = GPT(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert config.n_params() == count


def test_flops_of_gpt2_small() -> None:
    assert DecoderConfig().flops_per_token(1024) == 854_438_400


def test_plain_dict_and_back() -> None:
    values = GPT1.to_dict()
    assert all(type(value) in (int, float, str) for value in values.values())
    assert DecoderConfig.from_dict(values) == GPT1


def test_without_dropout_changes_nothing_else() -> None:
    bare = GPT1.without_dropout()
    assert (bare.embd_pdrop, bare.attn_pdrop, bare.resid_pdrop) == (0.0, 0.0, 0.0)
    assert dataclasses.replace(bare, embd_pdrop=0.1, attn_pdrop=0.1, resid_pdrop=0.1) == GPT1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_embd": 30, "n_head": 4}, "config: n_embd: found 30, expected a multiple of n_head (4)"),
        ({"n_layer": 0}, "config: n_layer: found 0, expected a whole number of at least 1"),
        ({"resid_pdrop": 1.0}, "config: resid_pdrop: found 1.0, expected a probability in [0, 1)"),
        ({"norm": "rms"}, "config: norm: found 'rms', expected one of pre, post"),
        ({"init": "zeros"}, "config: init: found 'zeros', expected one of gpt1, gpt2"),
        ({"layer_norm_epsilon": 0.0}, "config: layer_norm_epsilon: found 0.0, expected a number above 0"),
        ({"width": 3}, "config: width: unknown field, expected one of vocab_size,"),
    ],
)
def test_refusals(values: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The type checker that runs in tests only would speak first.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(UserError) as caught:
        DecoderConfig.from_dict(values)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
