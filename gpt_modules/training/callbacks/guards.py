"""What stops a run before a bad step reaches its weights."""

from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor

from gpt_modules.errors import UserError
from gpt_modules.training.callbacks.writer import log_interval
from gpt_modules.training.sharding import is_sharded, local


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
