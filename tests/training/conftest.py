"""Short fits in this process, and a logger that remembers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
from lightning.pytorch.loggers.logger import Logger

from gpt_modules.data import PPODataModule
from gpt_modules.training import PPOModule


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
    """ppo(batch_size=8, **module arguments): a module and its prompts, not yet run."""

    def build(batch_size: int = 8, **arguments: Any) -> tuple[PPOModule, PPODataModule]:
        given = {"init_from": str(micro.gpt), "rewards": str(micro.reward), "max_new_tokens": 8, "ppo_epochs": 1}
        module = PPOModule(**{**given, **arguments})
        cache = str(tmp_path / "cache")
        return module, PPODataModule(
            str(micro.prompts), tokenizer=str(micro.gpt), batch_size=batch_size, cache_dir=cache
        )

    return build
