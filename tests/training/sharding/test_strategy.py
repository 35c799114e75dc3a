"""What does not shard is refused under any strategy that does; what `fsdp2` does is tested in `test_fsdp`."""

import types

import lightning.pytorch as L
import pytest
from lightning.fabric.plugins import TorchCheckpointIO
from torch import nn

from gpt_modules.errors import UserError
from gpt_modules.training.callbacks.checkpointing import VerifiedCheckpointIO
from gpt_modules.training.sharding.strategy import FSDP2Strategy, refuse_sharding


def test_its_checkpoints_verify_whoever_builds_the_trainer():
    strategy, own = FSDP2Strategy(), VerifiedCheckpointIO()
    assert isinstance(strategy.checkpoint_io, VerifiedCheckpointIO)
    assert strategy.checkpoint_io is strategy.checkpoint_io
    strategy.checkpoint_io = own
    assert strategy.checkpoint_io is own
    with pytest.raises(
        UserError, match=r"^trainer\.plugins: found 'TorchCheckpointIO', expected a VerifiedCheckpointIO"
    ):
        strategy.checkpoint_io = TorchCheckpointIO()


class Owner(L.LightningModule):
    trainer = device_mesh = None

    def __init__(self, mesh):
        super().__init__()
        self.device_mesh = mesh
        self.trainer = types.SimpleNamespace(strategy=nn.Identity())


def test_what_does_not_shard_is_refused_under_any_strategy_that_does():
    refuse_sharding(Owner(None), "why")
    with pytest.raises(UserError) as refused:
        refuse_sharding(Owner("mesh"), "why")
    assert str(refused.value) == "trainer.strategy: found Identity beside Owner, expected auto or ddp: why"


@pytest.mark.parametrize(
    ("word", "settings", "message"),
    [
        ("maml", {}, " beside MAMLModule, expected auto or ddp: every task adapts a copy of all weights"),
        (
            "ppo",
            {"ref_reward_offload": True},
            " beside model.ref_reward_offload, expected auto or ddp: frozen",
        ),
    ],
)
def test_what_does_not_shard_is_refused_before_its_model_is_opened(procedure, monkeypatch, word, settings, message):
    module, _ = procedure(word, **settings)
    monkeypatch.setattr(type(module), "device_mesh", "mesh")
    monkeypatch.setattr(type(module), "trainer", Owner("mesh").trainer)
    with pytest.raises(UserError, match=f"trainer.strategy: found Identity{message}"):
        module.configure_model()
