"""One progress bar over optimizer steps, with speed and time left; in a log file, a line now and then."""

import math
import time
from typing import Any

import lightning.pytorch as L
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from gpt_modules.training.callbacks.writer import at_log_step
from gpt_modules.training.run_length import run_length

LINES_PER_RUN = 10
SHOWN = ("train/loss", "score", "kl")  # and all of `perf/`


class StepBar(L.Callback):
    """Shows the run's progress in optimizer steps, with the loss and the speed of training, and what a validation
    logged with `prog_bar=True`. No metric of training is logged so: Lightning reads it after every step, which waits
    for the device.

    Args:
        name: what the bar is labelled with; the module's class by default.
    """

    def __init__(self, name: str | None = None) -> None:
        self.name = name
        self._console = Console()
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._line_due = 0
        self._started = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar on rank 0."""
        self._total = int(total) if math.isfinite(total := run_length(trainer)) else None
        self._label = self.name or type(pl_module).__name__.removesuffix("Module").lower()
        self._started, self._first = time.perf_counter(), trainer.global_step
        if not trainer.is_global_zero:
            return
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[metrics]}"),
                console=self._console,
            )
            self._progress.start()
            self._task = self._progress.add_task(
                self._label, total=self._total, completed=trainer.global_step, metrics=""
            )

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Move the bar; metrics are read at log steps only, as reading waits for the device."""
        step = trainer.global_step
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=step)
            if at_log_step(trainer):
                self._progress.update(self._task, metrics=self._metrics(trainer))
        elif trainer.is_global_zero and step >= self._line_due:
            next_due = step + max(1, (self._total or 1000) // LINES_PER_RUN)
            self._line_due = self._total if self._total and step < self._total < next_due else next_due
            self._print_line(trainer, step)

    def _print_line(self, trainer: L.Trainer, step: int) -> None:
        elapsed = time.perf_counter() - self._started
        left = ""
        if self._total and step > self._first:
            left = f", {(self._total - step) * elapsed / (step - self._first):.0f} s left"
        self._console.print(
            f"{self._label} step {step}/{self._total or '?'}{left}  {self._metrics(trainer)}",
            highlight=False,
            soft_wrap=True,
        )

    @staticmethod
    def _metrics(trainer: L.Trainer) -> str:
        found = trainer.callback_metrics
        shown = {name: float(found[name]) for name in found if name in SHOWN or name.startswith("perf/")}
        shown |= {name: value for name, value in trainer.progress_bar_metrics.items() if name != "v_num"}
        return "  ".join(f"{name} {value:.4g}" for name, value in shown.items())

    def on_train_end(self, *_: Any) -> None:
        """Close the bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def on_exception(self, *_: Any) -> None:
        """Give the terminal back before the message."""
        self.on_train_end()
