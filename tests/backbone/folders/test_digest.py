"""A model is known by what it computes with."""

import hashlib
import json

import pytest
import torch

from gpt_modules.backbone import GPT, RewardModel, model_digest


def test_a_digest_is_of_the_configuration_and_of_every_weight_in_the_order_of_their_names(micro):
    model = GPT(micro.config(n_layer=1))
    written = json.dumps(model.config.to_dict(), sort_keys=True).encode()
    for name in sorted(model.state_dict()):
        written += name.encode() + model.state_dict()[name].numpy().tobytes()
    assert model_digest(model) == hashlib.sha256(written).hexdigest()


def test_every_weight_and_every_setting_is_in_the_digest(micro):
    model = RewardModel(micro.config(n_layer=1))
    known = model_digest(model)
    for name, value in model.state_dict().items():
        kept = value.clone()
        value.view(-1)[-1] = torch.nextafter(value.view(-1)[-1], torch.tensor(torch.inf))
        assert model_digest(model) != known, name
        value.copy_(kept)
    assert model_digest(model) == known
    model.config = micro.config(n_layer=1, resid_pdrop=0.5)
    assert model_digest(model) != known


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_layout_of_a_weight_is_not_in_the_digest(micro, dtype):
    model = GPT(micro.config(n_layer=1)).to(dtype)
    known = model_digest(model)
    weight = model.decoder.wte.weight
    weight.data = weight.data.t().contiguous().t()
    assert not weight.is_contiguous()
    assert model_digest(model) == known
