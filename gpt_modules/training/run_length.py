"""How long a run is: the optimizer steps that were made, by whatever global batch, and those that are left.

Lightning's estimate takes every epoch to be as long as the one at hand, whose batches are counted as they are now: in a
run that goes on with another global batch neither holds, and a schedule would end too early or too late.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import lightning.pytorch as L

from gpt_modules.data.loader import limited


class Place(NamedTuple):
    """Where a run is between two batches.

    Args:
        steps: optimizer steps that were made.
        used: batches of the epoch at hand that were read; all, where what is left of it is less than a global batch.
        batches: of the epoch at hand, those included; `inf` where it has no last one.
        whole: batches of each epoch that follows.
        epochs: that follow; `inf` where there is no last one.
    """

    steps: int
    used: int
    batches: float
    whole: float
    epochs: float


def place_of(trainer: L.Trainer) -> Place:
    """As a checkpoint says that is being restored, else as the loops are. The training data is opened, if it is not."""
    if trainer.train_dataloader is None:
        trainer.fit_loop.setup_data()
    begun, used, steps = _progress(trainer)
    loader, epochs = trainer.train_dataloader, trainer.max_epochs
    none = trainer.limit_train_batches == 0  # Lightning does not ask for a loader
    batches = 0 if none else trainer.num_training_batches
    whole = limited(getattr(loader, "whole", batches), trainer.limit_train_batches)
    if getattr(loader, "over", False) and used:
        used = int(batches)
    follow = math.inf if epochs is None or epochs == -1 else max(0, epochs - max(1, begun))
    return Place(steps, used, batches, whole, follow)


def run_length(trainer: L.Trainer) -> float:
    """Optimizer steps from the first of the run to its last; `inf` where only time ends it."""
    place, together = place_of(trainer), trainer.accumulate_grad_batches
    limit = math.inf if trainer.max_steps == -1 else trainer.max_steps
    if math.inf in (place.batches, place.epochs):
        return limit
    left = math.ceil(place.batches / together) - place.used // together if place.used < place.batches else 0
    return min(limit, place.steps + left + place.epochs * math.ceil(place.whole / together))


def _progress(trainer: L.Trainer) -> tuple[int, int, int]:
    """Epochs that were begun, batches read of the last of them, optimizer steps."""
    checkpoint: Mapping[str, Any] = trainer._checkpoint_connector._loaded_checkpoint
    if not checkpoint:
        loop = trainer.fit_loop
        return loop.epoch_progress.current.ready, loop.epoch_loop.batch_progress.current.ready, trainer.global_step
    loops = checkpoint["loops"]["fit_loop"]  # which are restored when the optimizers are there
    begun, used = (loops[name]["current"]["ready"] for name in ("epoch_progress", "epoch_loop.batch_progress"))
    return begun, used, checkpoint["global_step"]
