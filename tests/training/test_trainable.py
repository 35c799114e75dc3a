"""Frozen layers and rates by depth: what learns, and at which rate."""

import pytest
import torch

from gpt_modules.backbone import GPT, DecoderConfig
from gpt_modules.errors import UserError
from gpt_modules.training.trainable import freeze, groups_by_depth, learn_rows

CONFIG = DecoderConfig(vocab_size=20, n_positions=8, n_layer=3, n_head=2, n_embd=16).without_dropout()


def test_frozen_layers_and_all_but_the_new_rows_stay():
    gpt = GPT(CONFIG)
    freeze(gpt.decoder, 2)
    learn_rows(gpt.decoder.wte, [18, 19])
    before = {name: parameter.clone() for name, parameter in gpt.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in gpt.parameters() if p.requires_grad], lr=0.1, weight_decay=0.0)
    for _ in range(3):
        optimizer.zero_grad()
        gpt(torch.tensor([[1, 18, 2, 19]])).square().mean().backward()
        optimizer.step()
    moved = {name for name, parameter in gpt.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name in before if "blocks.2" in name or "ln_f" in name or name == "decoder.wte.weight"}
    rows = (gpt.decoder.wte.weight != before["decoder.wte.weight"]).any(1)
    assert rows.nonzero().flatten().tolist() == [18, 19]


@pytest.mark.parametrize("blocks", [-1, 4])
def test_more_frozen_blocks_than_there_are(blocks):
    with pytest.raises(UserError, match=rf"freeze: found {blocks}, expected 0 to the decoder's 3 blocks"):
        freeze(GPT(CONFIG).decoder, blocks)


def test_rates_fall_with_depth_and_every_parameter_has_one():
    gpt, head = GPT(CONFIG), torch.nn.Linear(16, 2, bias=False)
    groups = groups_by_depth(gpt.decoder, head, lr=1.0, layer_decay=0.5, weight_decay=0.1)
    rate = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    found = {name: rate[id(parameter)] for name, parameter in gpt.decoder.named_parameters()}
    assert rate[id(head.weight)] == 1.0
    assert {found["ln_f.weight"], found["ln_f.bias"]} == {1.0}
    for block, expected in ((2, 0.5), (1, 0.25), (0, 0.125)):
        assert {value for name, value in found.items() if f"blocks.{block}." in name} == {expected}
    assert {found["wte.weight"], found["wpe.weight"]} == {0.0625}
    assert sum(len(group["params"]) for group in groups) == len(found) + 1
    decay = {group["weight_decay"] for group in groups for parameter in group["params"] if parameter.ndim < 2}
    assert decay == {0.0}
