"""What a run reached, before and after, in `summary.json`."""

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console

from gpt_modules.storage.summary import Baseline, Summary, write_summary
from gpt_modules.training.callbacks.export import ExportBest


def found_baselines(callback: Any) -> dict[str, dict[str, Any]]:
    """Metric -> {"name", "value"} of what a simple method reaches, from a callback that has measured it."""
    return getattr(callback, "baselines", {})


class RunSummary(L.Callback):
    """Writes `<root>/summary.json` when the run is complete: every validation metric before the first step, and after
    the last of the weights that are exported.

    The file is what says that a stage is done: `gpt run` skips a stage that has one. TensorBoard's HPARAMS tab gets
    the same values. A validation after step n is logged at n, where Lightning would log it at n - 1.
    """

    def __init__(self) -> None:
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self.seconds = 0.0
        self._started = 0.0
        self._counted = 0
        self._trained = False

    def state_dict(self) -> dict[str, Any]:
        """The values so far and the time spent, over all attempts."""
        return {
            "before": self.before,
            "after": self.after,
            "seconds": self.seconds + time.perf_counter() - self._started,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self.before, self.after = ({**state_dict[when]} for when in ("before", "after"))
        self.seconds = float(state_dict["seconds"])

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        """Whether there was anything left to train."""
        self._trained = True

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning counts a step only after its validation."""
        loop = trainer.fit_loop.epoch_loop
        self._counted, loop._batches_that_stepped = loop._batches_that_stepped, trainer.global_step

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The validation that precedes the first step is the `before`, and TensorBoard's value at step 0."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        trainer.fit_loop.epoch_loop._batches_that_stepped = self._counted
        if trainer.state.fn != "fit":
            return
        if not self.before and trainer.global_step == 0:
            self.before = metrics
        self.after = metrics
        if trainer.sanity_checking and trainer.logger is not None:
            trainer.logger.log_metrics(metrics, step=0)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the file and the hyper-parameters with their outcome."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ExportBest):
                callback.on_fit_end(trainer, pl_module)  # whichever comes first in the list: it measures, this tells
                self.after = {name: value for name, value in callback.metrics.items() if name.startswith("val/")}
        if not trainer.is_global_zero:
            return
        if isinstance(trainer.logger, TensorBoardLogger):
            final = {f"final/{key.removeprefix('val/')}": value for key, value in self.after.items()}
            trainer.logger.log_hyperparams(dict(pl_module.hparams), final, step=trainer.global_step)
        baselines = {name: value for callback in trainer.callbacks for name, value in found_baselines(callback).items()}  # type: ignore[attr-defined]
        seconds = self.state_dict()["seconds"]
        named = {metric: Baseline(found["name"], found["value"]) for metric, found in baselines.items()}
        summary = Summary(self.before, self.after, seconds, trainer.global_step, named)
        root = Path(trainer.default_root_dir)
        root.mkdir(parents=True, exist_ok=True)
        write_summary(root, summary)
        Console().print(self._last_words(trainer), highlight=False, soft_wrap=True)

    def _last_words(self, trainer: L.Trainer) -> str:
        """What the run ended with: its steps, the numbers of the exported weights, and where they are."""
        stops = [one for one in trainer.callbacks if isinstance(one, EarlyStopping)]  # type: ignore[attr-defined]
        words = f"done: step {trainer.global_step}"
        if not self._trained:
            words += " had been reached before: nothing was trained"
        elif any(stop.stopped_epoch for stop in stops):
            words += " (stopped early)"
        elif 0 < trainer.global_step < trainer.max_steps and trainer.current_epoch == trainer.max_epochs:
            words += f" (trainer.max_epochs {trainer.max_epochs} came before max_steps {trainer.max_steps})"
        told = {name: value for name, value in self.after.items() if name.count("/") == 1}  # of a whole, not of parts
        values = "".join(f"  {name} {value:.4g}" for name, value in told.items())
        return f"{words}{values}  {Path(trainer.default_root_dir) / 'export'}"
