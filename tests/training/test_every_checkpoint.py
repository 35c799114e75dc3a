"""Resuming from any step gives the run that was never cut off."""

import lightning.pytorch as L
import pytest
import torch

from gpt_modules.data import (
    EpisodicDataModule,
    FinetuningDataModule,
    PPODataModule,
    PretrainingDataModule,
    RewardDataModule,
    SFTDataModule,
)
from gpt_modules.data.episodes.ciphers import SubstitutionCipher
from gpt_modules.training import FinetuningModule, MAMLModule, PPOModule, PretrainingModule, RewardModule, SFTModule
from gpt_modules.training.callbacks.checkpointing import ExactCheckpoint, RandomState, VerifiedCheckpointIO
from gpt_modules.training.callbacks.export import ExportBest
from gpt_modules.training.callbacks.guards import FiniteLossGuard
from gpt_modules.training.callbacks.summary import RunSummary
from gpt_modules.training.inner_loop import InnerLoop
from gpt_modules.training.optimizers import OptimizerConfig
from gpt_modules.training.ppo import KLConfig

FAST = OptimizerConfig(lr=1e-2)
STEPS = {"pretraining": 9, "finetuning": 9, "sft": 9, "reward": 9, "ppo": 12, "maml": 9}
MONITOR = {"reward": "val/margin", "ppo": "val/score"}


@pytest.fixture
def parts(micro, tmp_path):
    """word -> a module and its data, of three batches an epoch (PPO: four), with dropout."""
    folder, cache = str(micro.gpt), {"tokenizer": str(micro.gpt), "cache_dir": str(tmp_path / "cache")}
    text = str(micro.pretraining)

    def build(word):
        if word == "pretraining":
            data = PretrainingDataModule(text, text, context=16, batch_size=20, **cache)
            return PretrainingModule(micro.config(), optimizer=FAST), data
        if word == "finetuning":
            rows = FinetuningDataModule(str(micro.labelled), context=32, batch_size=35, **cache)
            return FinetuningModule(folder, optimizer=FAST), rows
        if word == "sft":
            return SFTModule(folder, optimizer=FAST), SFTDataModule(str(micro.sft), context=32, batch_size=10, **cache)
        if word == "reward":
            return RewardModule(folder, optimizer=FAST), RewardDataModule(
                str(micro.comparisons), batch_size=35, **cache
            )
        if word == "maml":
            sizes = {"support": 4, "query": 4, "tasks": 2, "steps": 3, "validation_tasks": 4, "context": 32}
            data = EpisodicDataModule([SubstitutionCipher(5)], tokenizer=str(micro.gpt), **sizes)
            return MAMLModule(folder, inner=InnerLoop(1, 0.1, "per_element"), optimizer=FAST), data
        kl = KLConfig(coef=0.1, target=1.0, horizon=100.0)
        module = PPOModule(folder, str(micro.reward), None, None, 6, ppo_epochs=2, minibatches=2, kl=kl, optimizer=FAST)
        return module, PPODataModule(str(micro.prompts), batch_size=8, **cache)

    return build


@pytest.fixture
def run(parts, fit, tmp_path):
    """run(word, name, checkpoint=None, **trainer settings): the Trainer, after three epochs."""

    def go(word, name, checkpoint=None, **settings):
        torch.manual_seed(0)
        module, data = parts(word)
        best = ExportBest(MONITOR.get(word, "val/loss"), "max" if word in MONITOR else "min")
        usual = {"max_epochs": 3, "limit_train_batches": STEPS[word] // 3, "limit_val_batches": 2}
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
    return {name: value for name, value in trainer.lightning_module.state_dict().items() if "metric" not in name}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "settings"),
    [
        ("pretraining", {}),
        ("pretraining", {"val_check_interval": 2}),
        ("pretraining", {"accumulate_grad_batches": 2, "limit_train_batches": 5, "limit_val_batches": 1}),
        ("pretraining", {"max_epochs": -1, "max_steps": 7}),
        ("sft", {}),
        ("reward", {}),
        ("maml", {}),
        ("maml", {"accumulate_grad_batches": 2, "max_epochs": -1, "max_steps": 5}),
        ("ppo", {}),
        ("ppo", {"check_val_every_n_epoch": 2}),
        ("ppo", {"accumulate_grad_batches": 2, "limit_train_batches": None}),
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
