"""Every refusal of a configuration, in one line that names the field."""

import jaxtyping
import pytest

from gpt_modules.backbone import DecoderConfig
from gpt_modules.errors import UserError

ROTARY = {"positions": "rotary"}
YARN = {"kind": "yarn", "factor": 2.0, "original_positions": 64}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_embd": 30, "n_head": 4}, "config: n_embd: found 30, expected a multiple of n_head (4)"),
        ({"n_layer": 0}, "config: n_layer: found 0, expected a whole number of at least 1"),
        ({"resid_pdrop": 1.0}, "config: resid_pdrop: found 1.0, expected a probability in [0, 1)"),
        ({"norm": "rms"}, "config: norm: found 'rms', expected one of pre, post"),
        ({"init": "zeros"}, "config: init: found 'zeros', expected one of gpt1, gpt2"),
        ({"layer_norm_epsilon": 0.0}, "config: layer_norm_epsilon: found 0.0, expected a number above 0"),
        (
            {"attention": ["dense", "local"]},
            "config: attention: found ['dense', 'local'], expected a list of dense and ",
        ),
        ({"attention": []}, "config: attention: found [], expected a list of dense and banded"),
        ({"attention": "banded"}, "config: attention: found 'banded', expected a list of dense and banded"),
        ({"window": 0}, "config: window: found 0, expected a whole number of at least 1"),
        ({"qkv_bias": 1}, "config: qkv_bias: found 1, expected true or false"),
        ({"width": 3}, "config: width: unknown field, expected one of vocab_size,"),
        (
            {"n_layer": 100_001},
            "config: n_layer: found 100001, expected a whole number of at least 1, and at most 100,000",
        ),
        ({"n_kv_head": 5}, "config: n_kv_head: found 5, expected a divisor of n_head (12)"),
        ({"n_kv_head": 0}, "config: n_kv_head: found 0, expected a whole number of at least 1"),
        ({"head_size": True}, "config: head_size: found True, expected a whole number of at least 1"),
        ({"n_inner": 1.5}, "config: n_inner: found 1.5, expected a whole number of at least 1"),
        ({"mlp": "silu"}, "config: mlp: found 'silu', expected one of gelu_tanh, gelu, relu, swiglu"),
        ({"norm_kind": "none"}, "config: norm_kind: found 'none', expected one of layer, rms"),
        ({"positions": "alibi"}, "config: positions: found 'alibi', expected one of learned, rotary"),
        ({"tied": "no"}, "config: tied: found 'no', expected true or false"),
        (
            {"parallel_residual": True, "norm": "post"},
            "config: parallel_residual: found True, expected false with norm: post",
        ),
        ({"position_offset": -1}, "config: position_offset: found -1, expected a whole number from 0"),
        ({"position_offset": 2, **ROTARY}, "config: position_offset: found 2, expected 0 with positions: rotary"),
        ({"rope_theta": 5e5}, "config: rope_theta: found 500000.0, expected 10000.0 with positions: learned"),
        ({"rope_theta": 1.0, **ROTARY}, "config: rope_theta: found 1.0, expected a finite number above 1"),
        ({"rope_fraction": 0.5}, "config: rope_fraction: found 0.5, expected 1.0 with positions: learned"),
        ({"rope_fraction": 1.5, **ROTARY}, "config: rope_fraction: found 1.5, expected a number above 0, up to 1"),
        (
            {"rope_fraction": 0.1, "n_embd": 96, **ROTARY},
            "config: rope_fraction: found 0.1, 0 channels, expected an even number of channels of a head of 8 to turn",
        ),
        (
            {"head_size": 7, **ROTARY},
            "config: rope_fraction: found 1.0, 7 channels, expected an even number of channels of a head of 7 to turn",
        ),
        ({"rope_scaling": YARN}, "config: rope_scaling: found one, expected None with positions: learned"),
        ({"rope_scaling": 2, **ROTARY}, "config: rope_scaling: found 2, expected kind, factor and what the kind needs"),
        (
            {"rope_scaling": {**YARN, "kind": "ntk"}, **ROTARY},
            "config: rope_scaling.kind: found 'ntk', expected one of",
        ),
        (
            {"rope_scaling": {"kind": "linear", "factor": -1.0}, **ROTARY},
            "config: rope_scaling.factor: found -1.0, expected a finite number above 0",
        ),
    ],
)
def test_refusals(values: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The type checker that runs in tests only would speak first.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(UserError) as caught:
        DecoderConfig.from_dict(values)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
