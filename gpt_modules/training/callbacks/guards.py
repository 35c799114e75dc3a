"""What stops a run before a bad step reaches its weights, or before steps that nothing would come of."""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor

from gpt_modules.errors import UserError, expect
from gpt_modules.training.callbacks.checkpointing import way_on
from gpt_modules.training.callbacks.export import ExportBest
from gpt_modules.training.callbacks.writer import at_log_step
from gpt_modules.training.sharding.models import is_sharded
from gpt_modules.training.sharding.tensors import local

log = logging.getLogger(__name__)

MOST_LOST = 0.9  # of the weights


class FiniteLossGuard(L.Callback):
    """Stops the run at the first loss that is not a finite number, before it reaches the weights.

    On the CPU the loss is looked at before every optimizer step. On a GPU that would wait for the device each step, so
    there the fused optimizer is handed the flag (`found_inf`, the mechanism of gradient scaling): it skips the update
    on the device, and the host reads the flag at log steps and before each checkpoint.

    In fp16 an infinite gradient is what finds the scale, which skips its step; but of a loss that is no number it would
    skip all that follow, and say nothing.
    """

    def __init__(self) -> None:
        self._flag: Tensor | None = None

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Where gradients are scaled, fold the loss's finiteness into a flag on its device."""
        if _scaled(trainer):
            several = trainer.world_size > 1
            self._fold(trainer.strategy.reduce(loss.detach(), reduce_op="sum") if several else loss.detach())

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Fold the gradient's finiteness into it elsewhere: a finite loss may still have an infinite gradient."""
        gradients = [local(p.grad) for p in pl_module.parameters() if p.grad is not None]
        if not gradients or _scaled(trainer):
            return
        total = torch.stack(torch._foreach_norm(gradients)).sum()
        if is_sharded(pl_module):  # each process sees its own part of the gradient
            total = trainer.strategy.reduce(total, reduce_op="sum")
        self._fold(total)

    def _fold(self, number: Tensor) -> None:
        bad = (~torch.isfinite(number)).float()
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
        if at_log_step(trainer):
            self._raise_if_set(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, *_: Any) -> None:
        """No checkpoint on disk may follow a bad step."""
        self._raise_if_set(trainer)

    def _raise_if_set(self, trainer: L.Trainer) -> None:
        if self._flag is not None and bool(self._flag):
            raise UserError(f"step {trainer.global_step}: the loss or its gradient is not finite; {_advice(trainer)}")


def _advice(trainer: L.Trainer) -> str:
    """Before the first step no rate is to blame."""
    if trainer.global_step == 0:
        return (
            "no step has been made, so the cause is in the data, the weights it begins from, trainer.precision, or a "
            "coefficient of the loss or an inner rate"
        )
    clip = "" if trainer.gradient_clip_val else " or set trainer.gradient_clip_val"
    then = way_on(trainer.default_root_dir)
    return f"nothing of it reached the weights. Lower model.optimizer.lr{clip}, then {then}"


def _scaled(trainer: L.Trainer) -> bool:
    return getattr(trainer.precision_plugin, "scaler", None) is not None


class CoarseWeights(L.Callback):
    """Says, before the first step, that bfloat16 weights would stay as they are: a step of AdamW is about as long as
    the rate, and what is less than half of a weight's last digit is lost.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Of the first process's weights, where several share them."""
        if not trainer.is_global_zero:
            return
        adaptive = [optimizer for optimizer in trainer.optimizers if not isinstance(optimizer, torch.optim.SGD)]
        share = lost_share(group for optimizer in adaptive for group in optimizer.param_groups)
        if share > MOST_LOST:
            log.warning(
                "trainer.precision: bfloat16 has 8 bits for a weight, too few for model.optimizer.lr: steps of it are "
                "lost in %.0f %% of the weights; expected a higher rate, or bf16-mixed, which learns in float32",
                100 * share,
            )


def lost_share(groups: Iterable[dict[str, Any]]) -> float:
    """Of the bfloat16 weights that learn, the share of those that a step as long as their group's peak rate, at the
    least, leaves as they are; 0 where there are none.
    """
    lost, count = torch.zeros((), dtype=torch.float64), 0
    for group in groups:
        rate = float(group.get("initial_lr", group["lr"]))
        for weight in (local(p.detach()) for p in group["params"] if rate and p.dtype == torch.bfloat16):
            lost = lost.to(weight.device) + (weight.abs() > rate * 2**9).sum()
            count += weight.numel()
    return float(lost) / max(1, count)


class MonitorGuard(L.Callback):
    """Refuses a callback that watches a metric which is not logged: one of validation before the first step, any other
    at the end of the first epoch.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """A run that does not validate has no metric of a validation."""
        if stage != "fit" or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for name, monitor in _monitors(trainer):
            if _of_validation(monitor) and trainer.limit_val_batches == 0:
                raise UserError(f"{name}: found {monitor!r} beside trainer.limit_val_batches 0, expected a validation")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at what a validation logs, the one before the first step too."""
        if trainer.state.fn == "fit":
            self._check(trainer, _of_validation)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at what training logs."""
        self._check(trainer, lambda monitor: not _of_validation(monitor))

    def _check(self, trainer: L.Trainer, looked_at: Callable[[str], bool]) -> None:
        known = ", ".join(sorted(trainer.callback_metrics))
        for name, monitor in _monitors(trainer):
            if looked_at(monitor):
                expect(monitor in trainer.callback_metrics, name, monitor, f"one of the logged metrics: {known}")


def _monitors(trainer: L.Trainer) -> Iterator[tuple[str, str]]:
    """(key, metric) of Lightning's callbacks that watch one and do not take its absence lightly (`strict`)."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str) and getattr(callback, "strict", True) and not isinstance(callback, ExportBest):
            yield f"trainer.callbacks: {type(callback).__name__}: monitor", monitor


def _of_validation(monitor: str) -> bool:
    """Metrics of training are in groups of other names: `train/loss`, `policy/ratio`."""
    return monitor.startswith("val/") or "/" not in monitor
