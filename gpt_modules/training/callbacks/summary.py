"""What a run reached, before and after, in `summary.json`."""

import json
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.loggers import TensorBoardLogger

from gpt_modules.storage.durable import write_durably


def found_baselines(callback: Any) -> dict[str, dict[str, Any]]:
    """Metric -> {"name", "value"} of what a simple method reaches, from a callback that has measured it."""
    return getattr(callback, "baselines", {})


class RunSummary(L.Callback):
    """Keeps the first and the latest value of every validation metric and writes `<root>/summary.json` when the run
    is complete.

    The file is what says that a stage is done: `gpt run` skips a stage that has one. TensorBoard's HPARAMS tab gets
    the same values.
    """

    def __init__(self) -> None:
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self.seconds = 0.0
        self._started = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The values so far and the time spent, over all attempts."""
        return {
            "before": self.before,
            "after": self.after,
            "seconds": self.seconds + time.perf_counter() - self._started,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self.before, self.after, self.seconds = state_dict["before"], state_dict["after"], state_dict["seconds"]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The validation that precedes the first step is the `before`, and TensorBoard's value at step 0."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        if not self.before:
            self.before = metrics
        self.after = metrics
        if trainer.sanity_checking and trainer.logger is not None:
            trainer.logger.log_metrics(metrics, step=0)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the file and the hyper-parameters with their outcome."""
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if isinstance(trainer.logger, TensorBoardLogger):
            trainer.logger.log_hyperparams(
                dict(pl_module.hparams), {f"final/{key.removeprefix('val/')}": v for key, v in self.after.items()}
            )
        baselines = {name: value for callback in trainer.callbacks for name, value in found_baselines(callback).items()}  # type: ignore[attr-defined]
        summary = json.dumps({**self.state_dict(), "steps": trainer.global_step, "baselines": baselines}, indent=2)
        path = Path(trainer.default_root_dir) / "summary.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, lambda file: file.write_text(summary + "\n"))
