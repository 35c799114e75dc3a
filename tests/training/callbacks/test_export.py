"""Which weights a run hands on, and what is known of them."""

import math

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

from gpt_modules.backbone import load_pretrained
from gpt_modules.errors import UserError
from gpt_modules.storage.summary import read_summary
from gpt_modules.training.callbacks.checkpointing import ExactCheckpoint
from gpt_modules.training.callbacks.export import ExportBest
from gpt_modules.training.callbacks.summary import RunSummary


class ValueAt(L.Callback):
    """Puts a chosen value in place of the validation loss."""

    def __init__(self, values):
        self.values, self.weights = list(values), []

    def on_validation_epoch_end(self, trainer, module):
        if not trainer.sanity_checking:
            module.log("val/chosen", self.values[trainer.current_epoch])
            self.weights.append(self.seen)

    def on_validation_batch_end(self, trainer, module, *_):
        self.seen = module.model.head_weight.detach().clone()


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


@pytest.mark.parametrize("monitor", [None, "val/loss"])
def test_a_run_that_time_ends_within_its_first_step_exports_nothing(fit, parts, tmp_path, monitor):
    settings = {"max_time": {"microseconds": 1}, "accumulate_grad_batches": 4, "callbacks": [ExportBest(monitor)]}
    with pytest.raises(UserError, match=r"^export: found a run that ended before its first step, expected one: a l"):
        fit(*parts(), **settings)
    assert not (tmp_path / "export").exists()


def test_the_model_card_tells_the_metrics_of_the_exported_weights(fit, parts, tmp_path):
    export = ExportBest("val/chosen")
    export.recipe = "pretraining/tiny"
    fit(*parts(), max_epochs=3, callbacks=[ValueAt([2.0, 1.25, 3.0]), export])
    lines = (tmp_path / "export" / "README.md").read_text().splitlines()
    assert "| val/chosen | 1.25 |" in lines
    assert "| Trained by | Pretraining, recipe `pretraining/tiny` |" in lines
    assert "| Began from | new weights |" in lines
    fit(*parts(), max_epochs=1, callbacks=[ValueAt([7.0]), ExportBest()])  # in place of the folder with its card
    assert "| val/chosen | 7 |" in (tmp_path / "export" / "README.md").read_text().splitlines()


def test_the_model_card_tells_where_a_run_began(fit, parts, tmp_path):
    callbacks = [ExportBest(), RunSummary()]
    fit(*parts(), max_epochs=1, num_sanity_val_steps=-1, callbacks=callbacks)
    told = read_summary(tmp_path)
    line = f"| val/loss | {told.before['val/loss']:.4g} | {told.after['val/loss']:.4g} |"
    assert line in (tmp_path / "export" / "README.md").read_text().splitlines()


averaging = pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback with a model that overrides")


@averaging
@pytest.mark.parametrize("first", ["average", "export"])
@pytest.mark.parametrize(("monitor", "validated"), [("val/chosen", 1), (None, 2)])
def test_an_average_that_is_validated_is_what_is_exported(fit, parts, tmp_path, first, monitor, validated):
    module, data = parts()
    chosen, average = ValueAt([2.0, 1.0, 3.0]), EMAWeightAveraging(decay=0.9)
    both = [average, ExportBest(monitor)]
    fit(module, data, max_epochs=3, callbacks=[*(both if first == "average" else both[::-1]), chosen])
    exported = load_pretrained(tmp_path / "export", kind="gpt")
    assert torch.equal(exported.head_weight.detach(), chosen.weights[validated])
    card = (tmp_path / "export" / "README.md").read_text()
    assert "| Weights | average over steps, by EMAWeightAveraging |" in card.splitlines()


@averaging
def test_the_weights_in_training_stay_beside_their_average(fit, parts):
    alone, exporting = parts()[0], parts()[0]
    exporting.load_state_dict(alone.state_dict())
    for module, callbacks in ((alone, []), (exporting, [ExportBest("val/loss")])):
        torch.manual_seed(0)
        fit(module, parts()[1], max_epochs=2, callbacks=[EMAWeightAveraging(decay=0.9), *callbacks])
    assert torch.equal(alone.model.head_weight, exporting.model.head_weight)


def test_a_wrong_metric_is_told_before_the_first_step(fit, parts):
    with pytest.raises(UserError, match=r"export\.monitor: found 'val/los', expected one of .*val/loss"):
        fit(*parts(), callbacks=[ExportBest("val/los")], num_sanity_val_steps=-1, limit_train_batches=0)


@pytest.mark.parametrize(("mode", "first"), [("min", math.nan), ("max", math.inf), ("min", -math.inf)])
def test_a_value_that_is_not_finite_is_never_the_best(fit, parts, tmp_path, mode, first):
    chosen, best = ValueAt([first, 2.0, math.nan, first]), ExportBest("val/chosen", mode)
    fit(*parts(), max_epochs=4, limit_train_batches=1, callbacks=[chosen, best])
    exported = load_pretrained(tmp_path / "export", kind="gpt")
    assert torch.equal(exported.head_weight.detach(), chosen.weights[1])
    assert best.best == 2.0


def test_without_any_finite_value_the_last_weights_are_exported_and_said(fit, parts, tmp_path):
    module, data = parts()
    with pytest.warns(UserWarning, match=r"export\.monitor: val/chosen was never finite \(last: nan\)"):
        fit(module, data, max_epochs=2, callbacks=[ValueAt([math.nan] * 2), ExportBest("val/chosen")])
    exported = load_pretrained(tmp_path / "export", kind="gpt")
    assert torch.equal(exported.head_weight.detach(), module.model.head_weight.detach())


def test_the_best_by_another_measure_is_none():
    before, after = ExportBest("val/a"), ExportBest("val/b", "max")
    before.best, before._latest = 0.1, {"val/a": 0.1, "val/b": 0.2}
    after.load_state_dict(before.state_dict())
    assert after.best is None
    with pytest.raises(UserError, match=r"export\.monitor: found 'val/c', expected one of .*: val/a, val/b"):
        ExportBest("val/c").load_state_dict(before.state_dict())


def test_a_monitor_without_validation_is_refused(fit, parts):
    with pytest.raises(UserError, match=r"export\.monitor: found beside trainer\.limit_val_batches 0"):
        fit(*parts(), limit_val_batches=0, callbacks=[ExportBest("val/loss")])


def test_a_foreign_file_is_found_before_the_first_step(fit, parts, tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "thesis.tex").write_text("all I have")
    module, data = parts()
    with pytest.raises(UserError, match=r"found thesis\.tex, expected a new folder"):
        fit(module, data, callbacks=[ExportBest()])
    assert module.trainer.global_step == 0
    assert (tmp_path / "export" / "thesis.tex").read_text() == "all I have"


def test_a_folder_that_cannot_be_written_is_found_before_the_first_step(fit, parts, tmp_path):
    (tmp_path / "file").write_text("")
    module, data = parts()
    with pytest.raises(UserError, match="could not be written"):
        fit(module, data, callbacks=[ExportBest()], default_root_dir=tmp_path / "file" / "run")
    assert module.trainer.global_step == 0


class Counting(L.Callback):
    def __init__(self):
        self.steps = []

    def on_validation_end(self, trainer, module):
        self.steps.append(trainer.global_step)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [({"max_epochs": 2}, [2, 4]), ({"max_epochs": -1, "max_steps": 3}, [2, 3]), ({"max_steps": 1}, [1])],
)
def test_a_run_ends_with_one_validation_of_its_last_weights(fit, parts, settings, steps):
    counting = Counting()
    fit(*parts(), limit_train_batches=2, callbacks=[ExportBest(), RunSummary(), counting], **settings)
    assert counting.steps == steps


@pytest.fixture
def kept(fit):
    """`fit` with checkpoints."""
    return lambda *parts, **settings: fit(*parts, enable_checkpointing=True, **settings)


def saved_at(tmp_path, step):
    return tmp_path / "checkpoints" / f"step={step:08d}.ckpt"


def exported_weights(tmp_path):
    return load_pretrained(tmp_path / "export", kind="gpt").head_weight.detach()


def test_a_run_that_resumes_with_nothing_left_exports_its_own_weights_and_their_numbers(kept, parts, tmp_path):
    """Cut off after its last checkpoint, beside the export of a shorter run: `on_train_end` is never called again."""
    keep = ExactCheckpoint(every_n_steps=2, keep=9)
    module, data = parts()
    kept(module, data, max_steps=4, callbacks=[keep, ExportBest(), RunSummary()])
    right, numbers = exported_weights(tmp_path), read_summary(tmp_path).after
    kept(*parts(), max_steps=2, callbacks=[ExportBest(), RunSummary()])
    assert not torch.equal(exported_weights(tmp_path), right)
    again = [ExactCheckpoint(), ExportBest(), RunSummary()]
    kept(*parts(), max_steps=4, callbacks=again, ckpt_path=saved_at(tmp_path, 4))
    assert torch.equal(exported_weights(tmp_path), right)
    assert read_summary(tmp_path).after == pytest.approx(numbers)


@pytest.mark.parametrize("monitor", [None, "val/loss"])
def test_a_finished_run_that_is_repeated_keeps_its_numbers(kept, parts, tmp_path, monitor):
    kept(*parts(), max_steps=3, callbacks=[ExactCheckpoint(), ExportBest(monitor), RunSummary()])
    right, numbers = exported_weights(tmp_path), read_summary(tmp_path).after
    callbacks = [ExactCheckpoint(), ExportBest(monitor), RunSummary()]
    kept(*parts(), max_steps=3, callbacks=callbacks, ckpt_path=saved_at(tmp_path, 3))
    assert torch.equal(exported_weights(tmp_path), right)
    assert numbers
    assert read_summary(tmp_path).after == pytest.approx(numbers)


def test_a_run_that_does_not_validate_any_more_has_no_numbers(kept, parts, tmp_path):
    """Those of an earlier step are not those of the export."""
    card, callbacks = tmp_path / "export" / "README.md", [ExactCheckpoint(), ExportBest(), RunSummary()]
    kept(*parts(), max_steps=3, val_check_interval=1, callbacks=callbacks)
    assert read_summary(tmp_path).after
    assert "val/loss" in card.read_text()
    callbacks = [ExactCheckpoint(), ExportBest(), RunSummary()]
    kept(*parts(), max_steps=5, limit_val_batches=0, callbacks=callbacks, ckpt_path=saved_at(tmp_path, 3))
    assert read_summary(tmp_path).after == {}
    assert "val/loss" not in card.read_text()


@pytest.mark.parametrize("limit", [1, 2])
def test_a_finished_run_is_measured_on_all_that_it_is_now_told_to_be(kept, procedure, tmp_path, limit):
    """Not on what a validation with a limit had left."""

    def callbacks():
        return [ExactCheckpoint(), ExportBest(), RunSummary()]

    module, data = procedure("reward")
    data.val_batch_size = 1
    kept(module, data, max_steps=3, limit_val_batches=limit, val_check_interval=1, callbacks=callbacks())
    module, data = procedure("reward")
    data.val_batch_size = 1
    trainer = kept(module, data, max_steps=3, callbacks=callbacks(), ckpt_path=saved_at(tmp_path, 3))
    assert len(trainer.val_dataloaders) > limit
    (measured,) = trainer.validate(module, data, verbose=False)
    assert read_summary(tmp_path).after["val/loss"] == pytest.approx(measured["val/loss"])


def test_an_export_that_is_later_than_the_checkpoint_is_not_taken_for_its_best(kept, parts, tmp_path, caplog):
    """The folder got better weights after the checkpoint; a rate of 0 never leads there again."""
    callbacks = [ExactCheckpoint(every_n_steps=2, keep=9), ExportBest("val/loss"), RunSummary()]
    kept(*parts(), max_steps=6, val_check_interval=2, callbacks=callbacks)
    callbacks = [ExactCheckpoint(every_n_steps=100), ExportBest("val/loss"), RunSummary()]
    settings = {"val_check_interval": 2, "ckpt_path": saved_at(tmp_path, 2)}
    module, data = parts(lr=0.0)
    trainer = kept(module, data, max_steps=4, callbacks=callbacks, **settings)
    (measured,) = trainer.validate(module, data, verbose=False)
    assert read_summary(tmp_path).after["val/loss"] == pytest.approx(measured["val/loss"])
    assert torch.equal(exported_weights(tmp_path), module.model.head_weight.detach())
    assert "not those of the best val/loss" in caplog.text
