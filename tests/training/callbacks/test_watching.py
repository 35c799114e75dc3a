"""What watches a run, on runs of a few steps."""

import json

import lightning.pytorch as L
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gpt_modules.backbone import load_pretrained
from gpt_modules.data import PretrainingDataModule
from gpt_modules.errors import UserError
from gpt_modules.training import PretrainingModule
from gpt_modules.training.callbacks.dashboard import RunLogger
from gpt_modules.training.callbacks.export import ExportBest
from gpt_modules.training.callbacks.guards import FiniteLossGuard
from gpt_modules.training.callbacks.predictions import PredictionFile
from gpt_modules.training.callbacks.samples import SampleTable
from gpt_modules.training.callbacks.summary import RunSummary
from gpt_modules.training.callbacks.throughput import Throughput
from gpt_modules.training.callbacks.writer import markdown_table
from gpt_modules.training.optimizers import OptimizerConfig


@pytest.fixture
def parts(micro, tmp_path):
    def build(lr=1e-2, **arguments):
        module = PretrainingModule(micro.config(), optimizer=OptimizerConfig(lr=lr), **arguments)
        source = str(micro.pretraining)
        cache = str(tmp_path / "cache")
        return module, PretrainingDataModule(source, source, str(micro.gpt), context=16, batch_size=20, cache_dir=cache)

    return build


class ValueAt(L.Callback):
    """Puts a chosen value in place of the validation loss."""

    def __init__(self, values):
        self.values, self.weights = list(values), []

    def on_validation_epoch_end(self, trainer, module):
        if not trainer.sanity_checking:
            module.log("val/chosen", self.values[trainer.current_epoch])
            self.weights.append(module.model.head_weight.detach().clone())


@pytest.mark.parametrize(("mode", "best"), [("min", 1), ("max", 2)])
def test_the_best_weights_are_exported(fit, parts, tmp_path, mode, best):
    chosen = ValueAt([2.0, 1.0, 3.0, 2.5])
    fit(*parts(), max_epochs=4, callbacks=[chosen, ExportBest("val/chosen", mode)])
    exported = load_pretrained(tmp_path / "export", kind="gpt")
    assert torch.equal(exported.head_weight.detach(), chosen.weights[best])


def test_without_a_metric_the_last_weights_are_exported(fit, parts, tmp_path):
    module, data = parts()
    fit(module, data, max_steps=3, callbacks=[ExportBest()])
    exported = load_pretrained(tmp_path / "export", kind="gpt")
    assert torch.equal(exported.head_weight.detach(), module.model.head_weight.detach())


def test_a_wrong_metric_is_told_before_the_first_step(fit, parts):
    with pytest.raises(UserError, match=r"export\.monitor: found 'val/los', expected one of .*val/loss"):
        fit(*parts(), callbacks=[ExportBest("val/los")], num_sanity_val_steps=-1, limit_train_batches=0)


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


def test_the_summary_has_before_and_after(fit, parts, tmp_path):
    trainer = fit(*parts(), max_epochs=2, num_sanity_val_steps=-1, callbacks=[RunSummary()])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["before"]["val/loss"] > summary["after"]["val/loss"]
    assert summary["after"]["val/loss"] == pytest.approx(trainer.logger.values("val/loss")[-1])
    assert summary["steps"] == trainer.global_step
    assert summary["seconds"] > 0


def test_throughput_counts_tokens(fit, parts):
    trainer = fit(*parts(), max_epochs=2, callbacks=[Throughput(peak_flops=1e12)], log_every_n_steps=2)
    rates, utilisation = (trainer.logger.values(f"perf/{name}") for name in ("tokens_per_s", "mfu"))
    assert rates
    assert all(rate > 0 for rate in rates)
    per_token = trainer.lightning_module.flops_per_token()
    assert utilisation == pytest.approx([rate * per_token / 1e12 for rate in rates], rel=1e-3)


def test_tensorboard_gets_samples_and_each_value_once(fit, parts, tmp_path):
    logger = RunLogger(tmp_path, name="", version="")
    module, data = parts(sample_prompts=["the film"], sample_tokens=3)
    fit(module, data, max_epochs=2, logger=logger, callbacks=[SampleTable()])
    logger.log_metrics({"x": 1.0}, 5)
    logger.log_metrics({"x": 1.0}, 5)
    logger.log_metrics({"x": 1.0}, 6)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("x")] == [5, 6]
    table = events.Tensors("samples/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "the film" in table


def test_a_table_in_markdown():
    rows = [{"prompt": "a|b", "answer": "one\ntwo"}]
    assert markdown_table(rows).splitlines() == ["| prompt | answer |", "| --- | --- |", "| a\\|b | one ⏎ two |"]
    assert markdown_table([]) == ""


def test_predictions_are_one_line_a_row(parts, tmp_path):
    trainer = L.Trainer(accelerator="cpu", default_root_dir=tmp_path, logger=False, enable_checkpointing=False)
    callback, (module, _) = PredictionFile(), parts()
    for rows in ([{"text": "é"}], [{"text": "b"}, {"text": "c"}]):
        callback.on_predict_batch_end(trainer, module, rows)
    callback.on_predict_end()
    assert [json.loads(line)["text"] for line in (tmp_path / "predictions.jsonl").read_text().splitlines()] == [
        "é",
        "b",
        "c",
    ]
