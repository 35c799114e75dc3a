"""Norms by their formulas."""

import dataclasses

import pytest
import torch

from gpt_modules.backbone import DecoderConfig
from gpt_modules.backbone.norms import RMSNorm, norm

CONFIG = DecoderConfig(vocab_size=7, n_positions=4, n_layer=1, n_head=2, n_embd=8, layer_norm_epsilon=0.01)


def test_both_kinds_by_their_formulas() -> None:
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    found = {}
    for kind in ("layer", "rms"):
        made = norm(dataclasses.replace(CONFIG, norm_kind=kind), 8)
        torch.nn.init.constant_(made.weight, 2.0)
        found[kind] = made(x)
    centred = x - x.mean(-1, keepdim=True)
    torch.testing.assert_close(found["layer"], 2 * centred / (centred.square().mean(-1, keepdim=True) + 0.01).sqrt())
    torch.testing.assert_close(found["rms"], 2 * x / (x.square().mean(-1, keepdim=True) + 0.01).sqrt())


@pytest.mark.parametrize(("given", "held"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_types_meet_in_the_wider_and_the_input_keeps_its_own(given: torch.dtype, held: torch.dtype) -> None:
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).to(given)
    made = RMSNorm(8, eps=0.01).to(held)
    expected = torch.nn.functional.rms_norm(x.float(), (8,), made.weight.float(), 0.01).to(given)
    assert made(x).dtype == given
    torch.testing.assert_close(made(x), expected, rtol=0, atol=0)
