"""No bad step reaches the weights."""

import lightning.pytorch as L
import pytest

from gpt_modules.errors import UserError
from gpt_modules.training.callbacks.guards import FiniteLossGuard


class Spoil(L.Callback):
    """An infinite gradient, with a finite loss, at one step."""

    def __init__(self, step):
        self.step = step

    def on_after_backward(self, trainer, module):
        if trainer.global_step == self.step:
            next(module.parameters()).grad.view(-1)[0] = float("inf")


def test_a_bad_gradient_never_reaches_the_weights(fit, parts):
    module, data = parts()
    with pytest.raises(UserError, match=r"^step 2: the loss or its gradient is not finite"):
        fit(module, data, callbacks=[Spoil(2), FiniteLossGuard()])
    assert module.trainer.global_step == 2
    assert all(parameter.isfinite().all() for parameter in module.parameters())
