"""What watches a run: the finite-loss guard, throughput, sample texts, the export of the best weights, the run's
summary.
"""

import json
import time
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import lightning.pytorch as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from gpt_modules.errors import UserError
from gpt_modules.training.checkpointing import write_durably
from gpt_modules.training.sharding import is_sharded, local


@runtime_checkable
class Exports(Protocol):
    """A module that can write its artefact: config.json, model.safetensors, tokenizer.json."""

    def export(self, folder: Path) -> None:
        """Write the folder."""


@runtime_checkable
class Samples(Protocol):
    """A module that can show what it does, as rows of a table."""

    def sample_rows(self) -> list[dict[str, str]]:
        """Rows with equal keys."""


def tensorboard(trainer: L.Trainer) -> Any | None:
    """The summary writer of rank 0, if the run has one."""
    logger = trainer.logger
    return logger.experiment if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero else None


def log_interval(trainer: L.Trainer) -> int:
    """Steps between log steps; a connector of Lightning's sets the attribute, so type checkers do not see it."""
    return int(trainer.log_every_n_steps)  # type: ignore[attr-defined]


def markdown_table(rows: list[dict[str, str]]) -> str:
    """Rows as the Markdown that TensorBoard's text tab renders."""
    if not rows:
        return ""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ⏎ ") for cell in cells) + " |"

    header = list(rows[0])
    return "\n".join([line(header), line(["---"] * len(header)), *(line([row[key] for key in header]) for row in rows)])


class FiniteLossGuard(L.Callback):
    """Stops the run at the first loss that is not a finite number, before it reaches the weights.

    On the CPU the loss is looked at before every optimizer step. On a GPU that would wait for the device each step,
    so there the fused
    optimizer is handed the flag (`found_inf`, the mechanism of gradient scaling): it skips the update on the device,
    and the host reads
    the flag at log steps and before each checkpoint.
    """

    def __init__(self) -> None:
        self._flag: Tensor | None = None
        self._first = 0

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Fold the gradient's finiteness into a flag on its device: a finite loss may still have an infinite
        gradient.
        """
        gradients = [local(p.grad) for p in pl_module.parameters() if p.grad is not None]
        if not gradients or getattr(
            trainer.precision_plugin, "scaler", None
        ):  # fp16's scaler has its own way with infinities
            return
        total = torch.stack(torch._foreach_norm(gradients)).sum()
        bad = (~torch.isfinite(total)).float()
        if is_sharded(pl_module):  # each process sees its own part of the gradient
            bad = trainer.strategy.reduce(bad, reduce_op="sum")
        self._flag = bad if self._flag is None else torch.maximum(self._flag, bad)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        """Refuse the step on the CPU, let the device refuse it elsewhere."""
        if self._flag is None:
            return
        fused = all(group.get("fused") for group in optimizer.param_groups)
        if self._flag.device.type == "cpu" or not fused:
            self._raise_if_set(trainer)
        else:
            optimizer.grad_scale, optimizer.found_inf = None, self._flag

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Read the flag where reading is free: at log steps, whose metrics wait for the device anyway."""
        if trainer.global_step % log_interval(trainer) == 0:
            self._raise_if_set(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, *_: Any) -> None:
        """No checkpoint on disk may follow a bad step."""
        self._raise_if_set(trainer)

    def _raise_if_set(self, trainer: L.Trainer) -> None:
        if self._flag is not None and bool(self._flag):
            raise UserError(
                f"step {trainer.global_step}: the loss or its gradient is not finite; nothing of it reached the "
                "weights. Lower model.init_args.optimizer.lr or set trainer.gradient_clip_val, then go on with "
                "--ckpt_path last"
            )


class Throughput(L.Callback):
    """Logs tokens or episodes per second, and model FLOPs utilisation where the device's peak is given.

    Args:
        peak_flops: dense FLOP/s of one device at the run's precision (an H100 in bf16: 989e12).
    """

    def __init__(self, peak_flops: float | None = None) -> None:
        self.peak_flops = peak_flops
        self._count = 0.0
        self._since = 0.0

    def on_train_epoch_start(self, *_: Any) -> None:
        """A new window; the time a rollout took belongs to the epoch that it opens."""
        if self._since == 0.0:
            self._since = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count without a look at the device; divide at log steps."""
        count, unit = pl_module.work(batch)
        self._count += count * trainer.world_size
        if trainer.global_step == 0 or trainer.global_step % log_interval(trainer) or self._count == 0:
            return
        rate = self._count / (time.perf_counter() - self._since)
        pl_module.log(f"perf/{unit}_per_s", rate, prog_bar=True)
        if self.peak_flops is not None and unit == "tokens":
            flops = pl_module.flops_per_token() * rate
            pl_module.log("perf/mfu", flops / (self.peak_flops * trainer.world_size))
        self._restart()

    def on_validation_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Validation is no training time: drop the window it would stretch."""
        self._restart()

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        """The next window begins here."""
        self._restart()

    def _restart(self) -> None:
        self._count, self._since = 0, time.perf_counter()


class SampleTable(L.Callback):
    """Writes the module's sample texts to TensorBoard's text tab after each validation.

    Args:
        enabled: off for runs that should not spend time on it.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """One table a validation, at the run's step."""
        writer = tensorboard(trainer)
        if not self.enabled or not isinstance(pl_module, Samples) or trainer.sanity_checking:
            return
        if writer is None and not is_sharded(pl_module):
            return
        rows = pl_module.sample_rows()  # of a sharded model on every process: each holds a part of it
        if writer is not None:
            writer.add_text("samples", markdown_table(rows), trainer.global_step)


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


class PredictionFile(L.Callback):
    """Writes what `predict_step` returns, a list of plain rows a batch, to `<root>/predictions.jsonl`."""

    def on_predict_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        """One line a row, as they come: a long prediction survives a cut."""
        path = Path(trainer.default_root_dir) / "predictions.jsonl"
        if not hasattr(self, "_file"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w", encoding="utf-8")
        self._file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in outputs)

    def on_predict_end(self, *_: Any) -> None:
        """Close the file."""
        if hasattr(self, "_file"):
            self._file.close()
