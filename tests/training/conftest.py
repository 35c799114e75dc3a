"""Short fits in this process, and a logger that remembers."""

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
from conftest import shaken
from lightning.pytorch.loggers.logger import Logger

from gpt_modules.backbone import load_pretrained, save_pretrained
from gpt_modules.data import (
    EpisodicDataModule,
    FinetuningDataModule,
    PPODataModule,
    PretrainingDataModule,
    RewardDataModule,
    SFTDataModule,
)
from gpt_modules.data.episodes.ciphers import SubstitutionCipher
from gpt_modules.training import (
    DPOModule,
    FinetuningModule,
    MAMLModule,
    PPOModule,
    PretrainingModule,
    RewardModule,
    SFTModule,
)
from gpt_modules.training.inner_loop import InnerLoop
from gpt_modules.training.optimizers import OptimizerConfig
from gpt_modules.training.ppo import KLConfig

FAST = OptimizerConfig(lr=1e-2)


class Memory(Logger):
    """Every logged value, in order."""

    name, version = "memory", 0

    def __init__(self) -> None:
        super().__init__()
        self.points: list[tuple[str, int, float]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        points = [(name, int(step or 0), float(value)) for name, value in metrics.items()]
        if points != self.points[-len(points) :]:  # a step that is saved is logged twice, see `RunLogger`
            self.points += points

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass

    def values(self, name: str) -> list[float]:
        return [value for key, _, value in self.points if key == name]


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., L.Trainer]:
    """fit(module, data, **trainer settings): a Trainer that has run, with a `Memory` as its logger."""

    def run(module: L.LightningModule, data: L.LightningDataModule, **settings: Any) -> L.Trainer:
        resume = settings.pop("ckpt_path", None)
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        usual = {"max_epochs": 1, "num_sanity_val_steps": 0, "log_every_n_steps": 1, "default_root_dir": tmp_path}
        usual |= {"accelerator": "cpu", "devices": 1, "logger": Memory()}
        trainer = L.Trainer(**{**quiet, **usual, **settings})
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
        return trainer

    return run


@pytest.fixture
def ppo(micro: Any, tmp_path: Path) -> Callable[..., tuple[PPOModule, PPODataModule]]:
    """ppo(episodes=8, answers=1, **module arguments): a module and its prompts, not yet run."""

    def build(episodes: int = 8, answers: int = 1, **arguments: Any) -> tuple[PPOModule, PPODataModule]:
        given = {"init_from": str(micro.gpt), "rewards": str(micro.reward), "max_new_tokens": 8, "ppo_epochs": 1}
        module = PPOModule(**{**given, **arguments})
        cache = str(tmp_path / "cache")
        sizes = {"episodes": episodes, "answers": answers}
        return module, PPODataModule(str(micro.prompts), tokenizer=str(micro.gpt), cache_dir=cache, **sizes)

    return build


@pytest.fixture
def procedure(micro: Any, tmp_path: Path) -> Callable[..., tuple[L.LightningModule, L.LightningDataModule]]:
    """procedure(word, answers=1, **module arguments): a module and its data, of three batches an epoch (PPO: four),
    with dropout.
    """
    folder, cache = str(micro.gpt), {"tokenizer": str(micro.gpt), "cache_dir": str(tmp_path / "cache")}
    text = str(micro.pretraining)

    def data(word: str, answers: int) -> L.LightningDataModule:
        if word == "pretraining":
            return PretrainingDataModule(text, str(micro.labelled), context=16, batch_size=20, **cache)
        if word == "finetuning":
            return FinetuningDataModule(str(micro.labelled), context=32, batch_size=35, **cache)
        if word == "sft":
            return SFTDataModule(str(micro.sft), context=32, batch_size=10, **cache)
        if word in ("reward", "dpo"):
            return RewardDataModule(str(micro.comparisons), batch_size=35, **cache)
        if word == "ppo":
            return PPODataModule(str(micro.prompts), episodes=8, answers=answers, **cache)
        sizes = {"support": 4, "query": 4, "tasks": 2, "steps": 3, "validation_tasks": 4, "context": 32}
        return EpisodicDataModule([SubstitutionCipher(5)], tokenizer=str(micro.gpt), **sizes)

    kinds: dict[str, tuple[type[L.LightningModule], dict[str, Any]]] = {
        "pretraining": (PretrainingModule, {"config": micro.config()}),
        "finetuning": (FinetuningModule, {"init_from": folder}),
        "sft": (SFTModule, {"init_from": folder}),
        "reward": (RewardModule, {"init_from": folder}),
        "dpo": (DPOModule, {"init_from": folder}),
        "maml": (MAMLModule, {"init_from": folder, "inner": InnerLoop(1, 0.1, "per_element")}),
        "ppo": (PPOModule, {"init_from": folder, "rewards": str(micro.reward), "max_new_tokens": 6, "ppo_epochs": 2,
                            "minibatches": 2, "kl": KLConfig(coef=0.1, target=1.0, horizon=100.0)}),
    }  # fmt: skip

    def build(word: str, answers: int = 1, **arguments: Any) -> tuple[L.LightningModule, L.LightningDataModule]:
        kind, usual = kinds[word]
        return kind(**{"optimizer": FAST, **usual, **arguments}), data(word, answers)

    return build


@pytest.fixture
def functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards of the user's own, on texts."""
    module: Any = types.ModuleType("toy_rewards")
    module.share_of_g = lambda prompts, responses: [r.count("g") / max(1, len(r)) for r in responses]
    module.length = lambda prompts, responses: [float(len(r)) for r in responses]
    monkeypatch.setitem(sys.modules, "toy_rewards", module)


@pytest.fixture
def reference(micro: Any, tmp_path: Path) -> str:
    """A folder like the policy's, of another model."""
    model = shaken(load_pretrained(micro.gpt, kind="gpt"), 7)
    save_pretrained(tmp_path / "reference", model, tokenizer_json=micro.tokenizer.to_json())
    return str(tmp_path / "reference")


@pytest.fixture
def alone(fit: Any, ppo: Any) -> Callable[..., tuple[PPOModule, PPODataModule]]:
    """alone(**module arguments): a module on its Trainer, before its first step, and its data."""

    def start(**arguments: Any) -> tuple[PPOModule, PPODataModule]:
        module, data = ppo(**arguments)
        fit(module, data, num_sanity_val_steps=-1, limit_train_batches=0)
        return module, data

    return start
