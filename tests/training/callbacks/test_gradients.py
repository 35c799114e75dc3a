"""Gradients are there until the step that they are for, and not after it."""

import lightning.pytorch as L
import pytest
import torch

from gpt_modules.training.callbacks.gradients import FreedGradients


class Held(L.Callback):
    """Whether there are gradients after each batch."""

    def __init__(self):
        self.after = []

    def on_train_batch_end(self, trainer, module, *_):
        self.after.append(any(parameter.grad is not None for parameter in module.parameters()))


@pytest.mark.parametrize("batches", [1, 2])
def test_gradients_are_freed_by_the_step_and_by_nothing_else(fit, parts, batches):
    """What is learned is the same bit for bit."""

    def weights_after(*callbacks):
        torch.manual_seed(0)
        module, data = parts()
        fit(module, data, callbacks=list(callbacks), max_steps=2, accumulate_grad_batches=batches)
        return list(module.parameters())

    held = Held()
    ours, plain = weights_after(FreedGradients(), held), weights_after()
    assert held.after == ([True] * (batches - 1) + [False]) * 2
    assert all(torch.equal(*pair) for pair in zip(ours, plain, strict=True))
