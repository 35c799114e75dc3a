"""Gradients take memory between a backward pass and the step that it is for, and at no other time."""

from typing import Any

import lightning.pytorch as L


class FreedGradients(L.Callback):
    """Frees gradients once a step is taken. Lightning does so before the next backward pass, so that they would lie
    beside the next forward's activations, a validation's logits and a rollout's keys and values: 4 bytes a parameter.
    """

    def __init__(self) -> None:
        self._stepped = False

    def on_before_optimizer_step(self, *_: Any) -> None:
        """A batch that only accumulates has no step."""
        self._stepped = True

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Free them."""
        if self._stepped:
            for optimizer in trainer.optimizers:
                optimizer.zero_grad()
        self._stepped = False
