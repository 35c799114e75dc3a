"""The learning rates of a run, beside its losses."""

from typing import Any

import lightning.pytorch as L
from torch.optim import Optimizer

from gpt_modules.training.callbacks.writer import log_interval


class LearningRates(L.Callback):
    """Logs the rate of the step that is taken: `train/lr`; where groups of parameters have peaks of their own, the rate
    of each, `train/lr/NAME`.
    """

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Numbers of the host: nothing waits for the device."""
        if (trainer.global_step + 1) % log_interval(trainer) == 0:
            pl_module.log_dict(rates(optimizer.param_groups))


def rates(groups: list[dict[str, Any]]) -> dict[str, float]:
    """Tag -> rate, of optimizer groups; those of one name, or without any and of one peak, are told once."""
    first: dict[Any, tuple[str, float]] = {}
    for number, group in enumerate(groups):
        peak = group.get("initial_lr", group["lr"])
        first.setdefault(group.get("name", peak), (str(group.get("name", number)), float(group["lr"])))
    peaks = {group.get("initial_lr", group["lr"]) for group in groups}
    if len(peaks) == 1:
        return {"train/lr": float(groups[0]["lr"])}
    return {f"train/lr/{name}": rate for name, rate in first.values()}
