"""A model is known by what it computes with; another one under the same name is refused."""

import hashlib
import json

import pytest
import torch

from gpt_modules.backbone import GPT, RewardModel
from gpt_modules.errors import UserError
from gpt_modules.training.rl.unchanged import FUNCTION, check_unchanged, model_digest


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


def test_what_is_the_same_new_or_gone_is_no_other_model():
    check_unchanged({"a": "1", "new": "2", "no source": None}, {"a": "1", "gone": "3", "no source": None})


@pytest.mark.parametrize("found", ["b" * 64, None])
def test_another_model_is_one_line_with_both_digests(found):
    with pytest.raises(UserError) as refused:
        check_unchanged({"same": "1", "runs/reward": found}, {"same": "1", "runs/reward": "a" * 64})
    assert str(refused.value) == (
        f"runs/reward: found another model (SHA-256 {str(found)[:12]}…) than this run began with, "
        "expected aaaaaaaaaaaa…: put it back, or begin a new run"
    )


def test_another_source_of_a_function_is_said_and_not_refused(caplog):
    check_unchanged({f"{FUNCTION}a:b": "1", f"{FUNCTION}c:d": "2"}, {f"{FUNCTION}a:b": "1", f"{FUNCTION}c:d": "3"})
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == "function c:d: its source is not the one that the checkpoint was trained with"


def test_a_folder_is_compared_after_a_function_that_has_changed():
    found = {f"{FUNCTION}a:b": "1", "folder": "2"}
    with pytest.raises(UserError, match=r"^folder: found another model"):
        check_unchanged(found, dict.fromkeys(found, "3"))
