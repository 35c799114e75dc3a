"""Models in a world of one process; what a run of several does is tested in `test_fsdp`."""

import types

import lightning.pytorch as L
import pytest
import torch
from torch import nn

from gpt_modules.backbone import GPT
from gpt_modules.errors import UserError
from gpt_modules.training.sharding.models import (
    blank_gpt,
    draw,
    gathered,
    held,
    is_sharded,
    layers_of,
    let_go,
    shard,
    whole,
)


def test_layers_are_every_weight_once_in_the_order_of_making(micro):
    decoder = GPT(micro.config(n_layer=3)).decoder
    listed = [parameter for layer in layers_of(decoder) for parameter in layer.parameters()]
    assert [id(parameter) for parameter in listed] == [id(parameter) for parameter in decoder.parameters()]
    assert [layer for layer in layers_of(decoder) if layer in list(decoder.blocks)] == list(decoder.blocks)


TODAY = {"positions": "rotary", "norm_kind": "rms", "mlp": "swiglu", "qk_norm": True, "tied": False, "qkv_bias": False}


@pytest.mark.parametrize("changes", [{}, {"norm": "post", "init": "gpt1"}, {"attention": ("dense", "banded")}, TODAY])
def test_a_model_that_is_drawn_layer_by_layer_has_the_numbers_of_one_that_is_made(micro, changes):
    config = micro.config(**changes)
    torch.manual_seed(5)
    made, after = GPT(config), torch.rand(3)
    torch.manual_seed(5)
    model = blank_gpt(config)
    assert all(parameter.is_meta for parameter in model.parameters())
    draw(model.to_empty(device="cpu"), torch.device("cpu"))
    for name, value in made.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert torch.equal(torch.rand(3), after), "and takes as many random numbers"


def test_a_model_that_is_whole_is_gathered_already(micro):
    model = GPT(micro.config(n_layer=1))
    assert not is_sharded(model)
    with gathered(model) as same:
        assert same is model


def test_another_strategy_that_shards_is_refused(micro):
    class Owner(L.LightningModule):
        device_mesh, trainer = "mesh", types.SimpleNamespace(strategy=nn.Identity())

    with pytest.raises(UserError) as refused:
        shard(GPT(micro.config(n_layer=1)), Owner())
    assert str(refused.value) == "trainer.strategy: found Identity, expected fsdp2"


def test_what_is_whole_is_its_own_whole_and_needs_no_gathering(micro):
    model = GPT(micro.config(n_layer=1))
    assert whole(model) is model
    with held(model):
        let_go(model)
