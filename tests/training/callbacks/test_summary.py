"""What a run says of itself in `summary.json`."""

import json

import lightning.pytorch as L
import pytest

from gpt_modules.training import PretrainingModule
from gpt_modules.training.callbacks.export import ExportBest
from gpt_modules.training.callbacks.summary import RunSummary


def summary(root):
    return json.loads((root / "summary.json").read_text())


def test_the_summary_has_before_and_after(fit, parts, tmp_path):
    trainer = fit(*parts(), max_epochs=2, num_sanity_val_steps=-1, callbacks=[RunSummary()])
    found = summary(tmp_path)
    assert found["before"]["val/loss"] > found["after"]["val/loss"]
    assert found["after"]["val/loss"] == pytest.approx(trainer.logger.values("val/loss")[-1])
    assert found["steps"] == trainer.global_step
    assert found["seconds"] > 0


def test_without_a_validation_before_the_first_step_there_is_no_before(fit, parts, tmp_path):
    """The first one after it is none."""
    fit(*parts(), max_epochs=2, num_sanity_val_steps=0, callbacks=[RunSummary()])
    found = summary(tmp_path)
    assert (found["before"], "val/loss" in found["after"]) == ({}, True)


@pytest.mark.parametrize(("steps", "told"), [(1000, " (trainer.max_epochs 1 came before max_steps 1000)  "), (2, "  ")])
def test_of_two_ends_the_one_that_came_first_is_told(fit, parts, capsys, steps, told):
    trainer = fit(*parts(), max_epochs=1, max_steps=steps, limit_train_batches=2, callbacks=[RunSummary()])
    assert trainer.global_step == 2
    assert f"done: step 2{told}val/loss" in capsys.readouterr().out


@pytest.mark.parametrize("monitor", [None, "val/loss"])
@pytest.mark.parametrize("steps", [3, 4])
def test_the_numbers_are_those_of_the_exported_weights(fit, parts, tmp_path, monitor, steps):
    """At a rate at which the loss rises again, with validations at steps 2 and 4 or an end between them."""
    module, data = parts(lr=0.5)
    settings = {"max_steps": steps, "max_epochs": -1, "limit_train_batches": 2, "num_sanity_val_steps": -1}
    trainer = fit(module, data, callbacks=[RunSummary(), ExportBest(monitor)], **settings)
    exported = PretrainingModule(init_from=str(tmp_path / "export"))
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    (found,) = L.Trainer(accelerator="cpu", **quiet).validate(exported, datamodule=data, verbose=False)
    assert summary(tmp_path)["after"] == pytest.approx(found, rel=1e-5)
    losses = [(step, value) for name, step, value in trainer.logger.points if name == "val/loss"]
    assert [step for step, _ in losses] == [0, 2, steps]
    exported_loss = losses[-1][1] if monitor is None else min(value for _, value in losses[1:])
    assert exported_loss == pytest.approx(found["val/loss"], rel=1e-5)
