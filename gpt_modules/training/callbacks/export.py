"""The weights that a run hands on: the best, or the last."""

from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import lightning.pytorch as L

from gpt_modules.errors import UserError


@runtime_checkable
class Exports(Protocol):
    """A module that can write its artefact: config.json, model.safetensors, tokenizer.json."""

    def export(self, folder: Path) -> None:
        """Write the folder."""


class ExportBest(L.Callback):
    """Writes the artefact folder `<root>/export`, the weights that validate best, or the last ones.

    Args:
        monitor: a validation metric; left out, the weights at the end of the run are exported.
        mode: whether the metric should fall or rise.
    """

    def __init__(self, monitor: str | None = None, mode: Literal["min", "max"] = "min") -> None:
        self.monitor = monitor
        self.mode = mode
        self.best: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """The best value so far, so that a resumed run does not export something worse."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        self.best = state_dict["best"]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Export when the metric has improved."""
        if self.monitor is None or trainer.state.fn != "fit":
            return
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics))
            raise UserError(f"export.monitor: found {self.monitor!r}, expected one of the logged metrics: {known}")
        if trainer.sanity_checking:  # a wrong name has been told before the first step; a blank model is no best one
            return
        value = float(trainer.callback_metrics[self.monitor])
        if self.best is None or (value < self.best if self.mode == "min" else value > self.best):
            self.best = value
            self._export(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Without a metric, or when no validation has run, the last weights are the artefact."""
        if self.best is None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._export(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """No run ends without its artefact: one that was cut off after its last step has none left to take when it
        resumes, and then `on_train_end` is not called; one that resumes in another folder may find nothing better.
        """
        if not (Path(trainer.default_root_dir) / "export").exists() and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._export(trainer, pl_module)

    def _export(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if isinstance(pl_module, Exports):
            pl_module.export(Path(trainer.default_root_dir) / "export")
