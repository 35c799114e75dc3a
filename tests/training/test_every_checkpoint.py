"""Resuming from any step gives the run that was never cut off."""

import lightning.pytorch as L
import pytest
import torch

from gpt_modules.backbone import LoRAConfig
from gpt_modules.training.callbacks.checkpointing import ExactCheckpoint, RandomState, VerifiedCheckpointIO
from gpt_modules.training.callbacks.export import ExportBest
from gpt_modules.training.callbacks.guards import FiniteLossGuard
from gpt_modules.training.callbacks.summary import RunSummary
from gpt_modules.training.rl.estimators import EstimatorConfig
from gpt_modules.training.rl.settings import CriticConfig, KLConfig

STEPS = {"pretraining": 9, "finetuning": 9, "sft": 9, "reward": 9, "ppo": 12, "maml": 9, "dpo": 9}
LORA = {"lora": LoRAConfig(rank=2, dropout=0.2)}
RLOO = {"estimator": EstimatorConfig("rloo"), "answers": 4}
GRPO = {"estimator": EstimatorConfig("grpo"), "answers": 2, "kl": KLConfig(loss="k3")}
MONITOR = {"reward": "val/margin", "dpo": "val/margin", "ppo": "val/score"}


@pytest.fixture
def run(procedure, fit, tmp_path):
    """run(word, name, checkpoint=None, model={}, **trainer settings): the Trainer, after three epochs."""

    def go(word, name, checkpoint=None, model=None, **settings):
        torch.manual_seed(0)
        module, data = procedure(word, **(model or {}))
        best = ExportBest(MONITOR.get(word, "val/loss"), "max" if word in MONITOR else "min")
        cut = None if word == "ppo" else STEPS[word] // 3  # an epoch is an iteration
        usual = {"max_epochs": 3, "limit_train_batches": cut, "limit_val_batches": 2}
        return fit(
            module,
            data,
            callbacks=[best, RandomState(), FiniteLossGuard(), RunSummary(), ExactCheckpoint(1, keep=1000)],
            plugins=[VerifiedCheckpointIO()],
            default_root_dir=tmp_path / name,
            enable_checkpointing=True,
            ckpt_path=checkpoint,
            **{**usual, **settings},
        )

    return go


def weights(trainer: L.Trainer):
    """But for what an export sets: a run that goes on in another folder exports at other steps."""
    set_by_export = ("model.bias", "model.scale")
    state = trainer.lightning_module.state_dict()
    return {name: value for name, value in state.items() if "metric" not in name and name not in set_by_export}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "settings"),
    [
        ("pretraining", {}),
        ("pretraining", {"val_check_interval": 2}),
        ("pretraining", {"accumulate_grad_batches": 2, "limit_train_batches": 5, "limit_val_batches": 1}),
        ("pretraining", {"max_epochs": -1, "max_steps": 7}),
        ("sft", {}),
        ("sft", {"model": LORA}),
        ("reward", {}),
        ("reward", {"model": LORA}),
        ("dpo", {}),
        ("dpo", {"model": LORA}),
        *((word, {"limit_train_batches": 2}) for word in ("finetuning", "sft", "reward", "dpo", "maml")),
        ("maml", {}),
        ("maml", {"accumulate_grad_batches": 2, "max_epochs": -1, "max_steps": 5}),
        ("ppo", {}),
        ("ppo", {"model": {"lora": LoRAConfig(2), "critic": CriticConfig(lora=LoRAConfig(2))}}),
        ("ppo", {"check_val_every_n_epoch": 2}),
        ("ppo", {"model": RLOO}),
        ("ppo", {"model": GRPO, "accumulate_grad_batches": 2}),
        ("ppo", {"accumulate_grad_batches": 2}),
    ],
    ids=str,
)
def test_every_checkpoint_leads_to_the_same_end(run, tmp_path, word, settings):
    straight = run(word, "straight", **settings)
    losses = straight.logger.values("train/loss")
    saved = sorted((tmp_path / "straight" / "checkpoints").glob("*.ckpt"))
    assert len(saved) == straight.global_step == len(losses)
    for step, checkpoint in enumerate(saved[:-1], start=1):
        root = tmp_path / f"from-{step}"
        resumed = run(word, root.name, checkpoint, **settings)
        assert resumed.logger.values("train/loss") == losses[step:], f"resumed from step {step}"
        for name in ("val/loss", "val/score", "objective/kl", "objective/kl_coef"):
            later = [value for key, at, value in straight.logger.points if key == name and at > step]
            values = [value for key, at, value in resumed.logger.points if key == name and at > step]
            assert values == later, f"{name} after step {step}"
        for name, value in weights(straight).items():
            assert torch.equal(weights(resumed)[name], value), f"{name} of the run from step {step}"
