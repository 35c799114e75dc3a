"""No bad step reaches the weights, and steps that none would reach are told."""

import logging

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision

from gpt_modules.errors import UserError
from gpt_modules.training.callbacks.checkpointing import ExactCheckpoint
from gpt_modules.training.callbacks.guards import CoarseWeights, FiniteLossGuard, MonitorGuard, lost_share
from gpt_modules.training.optimizers import OptimizerConfig


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


def test_before_the_first_step_no_rate_is_to_blame(fit, parts):
    with pytest.raises(UserError, match=r"^step 0: .* no step has been made, so the cause is in the data, ") as told:
        fit(*parts(), callbacks=[Spoil(0), FiniteLossGuard()])
    assert "optimizer.lr" not in str(told.value)
    assert "--ckpt_path" not in str(told.value)


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("saved", [True, False])
def test_only_what_is_there_is_advised(fit, parts, clip, saved):
    callbacks = [Spoil(2), FiniteLossGuard(), *([ExactCheckpoint(1)] if saved else [])]
    with pytest.raises(UserError, match=r"^step 2: .* Lower model\.optimizer\.lr") as told:
        fit(*parts(), callbacks=callbacks, gradient_clip_val=clip, enable_checkpointing=saved)
    assert ("gradient_clip_val" in str(told.value)) == (clip is None)
    assert str(told.value).endswith(
        "then go on with --ckpt_path last" if saved else "then begin anew: nothing was saved"
    )


def scaled():
    """Precision that Lightning takes on a CPU from its plugin only."""
    return [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**8))]


def test_a_scale_is_found_and_no_number_is_told(fit, parts, monkeypatch):
    """Of an infinite gradient the scaler makes a smaller scale; of a loss that is NaN it would make one for ever."""
    module, data = parts()
    fit(module, data, callbacks=[Spoil(2), FiniteLossGuard()], plugins=scaled())
    module, data = parts()
    own = type(module).training_step
    monkeypatch.setattr(
        module, "training_step", lambda *batch: own(module, *batch) * (1 if batch[1] < 3 else torch.nan)
    )
    with pytest.raises(UserError, match=r"^step 3: the loss or its gradient is not finite"):
        fit(module, data, callbacks=[FiniteLossGuard()], plugins=scaled())
    assert all(parameter.isfinite().all() for parameter in module.parameters())


@pytest.mark.parametrize("kind", [EarlyStopping, ModelCheckpoint])
@pytest.mark.parametrize("monitor", ["val/los", "val_loss"])
def test_a_monitor_that_no_validation_logs_is_refused_before_the_first_step(fit, parts, kind, monitor):
    module, data = parts()
    line = rf"^trainer\.callbacks: {kind.__name__}: monitor: found '{monitor}', expected one of .*val/loss"
    settings = {"num_sanity_val_steps": -1, "enable_checkpointing": True}
    with pytest.raises(UserError, match=line):
        fit(module, data, callbacks=[MonitorGuard(), kind(monitor=monitor)], **settings)
    assert module.trainer.global_step == 0


def test_a_monitor_of_training_is_looked_for_in_training(fit, parts):
    watched = {"check_on_train_epoch_end": True}
    fit(*parts(), callbacks=[MonitorGuard(), EarlyStopping("train/loss", **watched)], num_sanity_val_steps=-1)
    with pytest.raises(UserError, match=r"EarlyStopping: monitor: found 'train/los', expected one of .*train/loss"):
        fit(*parts(), callbacks=[MonitorGuard(), EarlyStopping("train/los", **watched)])


def test_a_monitor_of_a_run_that_does_not_validate_is_refused(fit, parts):
    with pytest.raises(UserError, match=r"found 'val/loss' beside trainer\.limit_val_batches 0"):
        fit(*parts(), callbacks=[MonitorGuard(), EarlyStopping("val/loss")], limit_val_batches=0)


@pytest.mark.parametrize("rate", [1e-6, 1e-5, 1e-4, 1e-3])
def test_weights_that_a_step_leaves_are_found_without_one(rate):
    """Each that is counted stays, whichever way it goes; of a step twice as long none is missed."""
    weights = 0.02 * torch.randn(10_000).bfloat16()
    stays = lambda step: float(((weights + step == weights) & (weights - step == weights)).float().mean())  # noqa: E731
    share = lost_share([{"params": [weights], "lr": 0.0, "initial_lr": rate}])
    assert stays(2 * rate) <= share <= stays(rate)
    assert lost_share([{"params": [weights, weights.float()], "lr": rate}, {"params": [weights], "lr": 0.0}]) == share
    assert lost_share([{"params": [weights.float()], "lr": rate}]) == 0.0


@pytest.mark.parametrize(
    ("precision", "rate", "told"), [("bf16-true", 1e-7, True), ("bf16-true", 1e-2, False), ("32-true", 1e-7, False)]
)
def test_a_rate_too_low_for_bfloat16_is_told_once(fit, procedure, caplog, precision, rate, told):
    module, data = procedure("sft", optimizer=OptimizerConfig(lr=rate))
    with caplog.at_level(logging.WARNING, "gpt_modules"):
        fit(module, data, callbacks=[CoarseWeights()], precision=precision, max_steps=2, limit_val_batches=0)
    lines = [record.getMessage() for record in caplog.records if record.name.endswith("guards")]
    assert len(lines) == told
    assert all(line.startswith("trainer.precision: ") and "model.optimizer.lr" in line for line in lines)
