"""Accuracy against tokens seen: tasks measured beside a pretraining."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.loggers import TensorBoardLogger
from torch.distributed.fsdp import FSDPModule

from gpt_modules.backbone import GPT
from gpt_modules.errors import UserError
from gpt_modules.evaluation.tasks.definitions import find_tasks
from gpt_modules.evaluation.tasks.figures import shot_curve_figure
from gpt_modules.evaluation.tasks.measure import (
    Settings,
    Workload,
    check_fits,
    check_shots,
    measure,
    prepare,
    read_data,
    shots_of,
)
from gpt_modules.evaluation.tasks.metrics import Estimate


class FewShot(L.Callback):
    """Measures a language model on evaluation tasks with K demonstrations in the prompt, with every validation and
    before the first step.

    Logs each task's first metric as `few_shot/<task>/<K>` against the step; where the module counts `tokens_seen`, also
    as `few_shot_by_tokens/<task>/<K>` against that; and the curve over K as a figure. Items and prompts are the same
    each time. Data is read when the run starts, so that a bad row is told before the first step.

    Args:
        tasks: files, or names of files in `recipes/evaluation/`.
        shots: numbers of demonstrations.
        limit: items of each task, the first so many.
        seed: of the demonstrations drawn.
    """

    def __init__(self, tasks: list[str], shots: Sequence[int] = (0,), limit: int | None = 200, seed: int = 0) -> None:
        if not tasks or not shots or min(shots) < 0:
            raise UserError(f"FewShot: found tasks {tasks} and shots {shots}, expected at least one of each, 0 or more")
        self.tasks = tasks
        self.shots = sorted(set(shots))
        self.settings = Settings(limit=limit, seed=seed)
        self.latest: dict[str, dict[int, Estimate]] = {}
        """Task -> K -> its first metric."""
        self._work: list[Workload] | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Read and check every task's data, and write its prompts."""
        self._open(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Straight to the logger, since what the module logs before the first step is dropped."""
        if not trainer.is_global_zero:
            return
        model, data = language_model(pl_module, "FewShot"), trainer.datamodule  # type: ignore[attr-defined]
        found: dict[str, dict[int, Estimate]] = {}
        names = set()
        for work in self._open(trainer, pl_module):
            metrics = measure(work, model, data.tokenizer, self.settings).metrics
            name, found.setdefault(work.task.name, {})[work.shots] = next(iter(metrics.items()))
            names.add(name)
        self.latest = found
        self._log(trainer, getattr(pl_module, "tokens_seen", None), names.pop() if len(names) == 1 else "score")

    def _log(self, trainer: L.Trainer, tokens: int | None, metric: str) -> None:
        values = {f"{task}/{k}": one.value for task, curve in self.latest.items() for k, one in curve.items()}
        step = trainer.global_step
        for logger in trainer.loggers:
            logger.log_metrics({f"few_shot/{name}": value for name, value in values.items()}, step=step)
            if not isinstance(logger, TensorBoardLogger):
                continue
            for name, value in values.items() if tokens is not None else ():
                logger.experiment.add_scalar(f"few_shot_by_tokens/{name}", value, tokens)
            curves = {task: sorted(curve.items()) for task, curve in self.latest.items() if len(curve) > 1}
            if curves:
                title = f"step {step}" if tokens is None else f"{tokens:,} tokens seen"
                logger.experiment.add_figure("few_shot/shots", shot_curve_figure(curves, metric, title), step)

    def _open(self, trainer: L.Trainer, pl_module: L.LightningModule) -> list[Workload]:
        if self._work is None:
            n_positions = language_model(pl_module, "FewShot").config.n_positions
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            self._work, tasks = [], find_tasks(self.tasks)
            check_shots("FewShot: shots", tasks, self.shots)
            for task in tasks:
                rows = read_data(task, self.settings, self.shots, data.cache_dir)
                check_fits(task, rows, n_positions, self.shots)
                self._work += [prepare(task, rows, data.tokenizer, n_positions, count, self.settings)
                               for count in shots_of(task, self.shots)]  # fmt: skip
        return self._work


def language_model(pl_module: L.LightningModule, callback: str) -> GPT:
    model = getattr(pl_module, "model", None)
    if not isinstance(model, GPT):
        raise UserError(f"{callback}: found {type(pl_module).__name__}, expected a module that trains a GPT")
    if any(isinstance(part, FSDPModule) for part in model.modules()):  # the first process alone would wait forever
        raise UserError(f"{callback}: found a model in shards, expected trainer.strategy auto or ddp")
    return model
