"""The learning rates of a run, beside its losses."""

from typing import Any

import lightning.pytorch as L
from torch.optim import Optimizer

from gpt_modules.training.callbacks.writer import log_interval


class LearningRates(L.Callback):
    """Logs the rate of the step that is taken: `train/lr`, which comes from `model.optimizer.lr`; where groups of
    parameters have peaks of their own, the rate of each beside it, `train/lr/NAME`: muon, value (PPO's critic), or the
    group's number by depth.
    """

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Numbers of the host: nothing waits for the device."""
        if (trainer.global_step + 1) % log_interval(trainer) == 0:
            pl_module.log_dict(rates(optimizer.param_groups))


def rates(groups: list[dict[str, Any]]) -> dict[str, float]:
    """Tag -> rate, of optimizer groups. The first one is of `optimizer.lr`, but for Muon's; those of its peak, of one
    name, or without any and of one peak, are told once.
    """
    main = next((group for group in groups if group.get("name") != "muon"), groups[0])
    beside: dict[Any, tuple[str, float]] = {}
    for number, group in enumerate(groups):
        if _peak(group) != _peak(main):
            name = group.get("name", _peak(group))
            beside.setdefault(name, (str(group.get("name", number)), float(group["lr"])))
    return {"train/lr": float(main["lr"]), **{f"train/lr/{name}": rate for name, rate in beside.values()}}


def _peak(group: dict[str, Any]) -> float:
    return float(group.get("initial_lr", group["lr"]))
