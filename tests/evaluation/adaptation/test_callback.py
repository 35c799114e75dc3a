"""The comparison at the end of a meta-learning run."""

import json
import math

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gpt_modules.backbone import GPT, DecoderConfig, FeedForward, LabellingModel, save_pretrained
from gpt_modules.data import EpisodicDataModule, PretrainingDataModule
from gpt_modules.data.episodes.ciphers import SubstitutionCipher
from gpt_modules.data.episodes.families import Episode, Example, Family
from gpt_modules.data.episodes.sinusoid import Sinusoid
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError
from gpt_modules.evaluation import AdaptationCurves
from gpt_modules.evaluation.adaptation import callback as adaptation_callback
from gpt_modules.training import MAMLModule, PretrainingModule
from gpt_modules.training.callbacks.summary import RunSummary
from gpt_modules.training.inner_loop import InnerLoop

CONFIG = DecoderConfig(vocab_size=24, n_positions=32, n_layer=1, n_head=2, n_embd=8, resid_pdrop=0.3)


class Signs(Family):
    """Whether a letter is of the first or the second half of a shuffled alphabet."""

    classes = 2

    def episode(self, generator, split, support, query):
        order = generator.permutation(8)

        def example(number):
            label = number % 2
            return Example("abcdefgh"[order[4 * label + generator.integers(4)]], f" {label}", label)

        return Episode([example(n) for n in range(support)], [example(n) for n in range(query)])


def ciphers(**changes):
    sizes = {"support": 4, "query": 2, "tasks": 2, "steps": 2, "validation_tasks": 2, "tokenizer": "train"}
    return EpisodicDataModule([SubstitutionCipher(symbols=5)], **{**sizes, "context": 20, **changes})


def curves(**changes):
    sizes = {"tasks": 3, "tuning_tasks": 2, "tasks_at_once": 2, "learning_rates": [0.01, 0.1]}
    return AdaptationCurves(**{"support": [2, 0], "steps": [1, 0], **sizes, **changes})


def decoder(**changes):
    return MAMLModule(**{"config": CONFIG, "inner": InnerLoop(steps=1, lr=0.1), **changes})


def fit(root, module, data, callbacks, logger=False, max_steps=2, ckpt_path=None):
    torch.manual_seed(0)
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_steps=max_steps, default_root_dir=root, callbacks=[*callbacks, RunSummary()],
        logger=logger, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        limit_val_batches=1, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return trainer


def by_name(points):
    return {(point.arm, point.support, point.steps): point for point in points}


def random_state():
    return np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002


def test_a_run_ends_with_the_comparison(tmp_path, capsys):
    callback, logger = curves(support=[2, 0, 5]), TensorBoardLogger(tmp_path, name="", version="")
    fit(tmp_path, decoder(), ciphers(), [callback], logger)
    written = json.loads((tmp_path / "adaptation.json").read_text())
    assert written["trained"] == {"support": 4, "steps": 1}
    assert len(written["by_support"]) == len(callback.latest.by_support) == 4 * 5 - 3
    printed = capsys.readouterr().out
    assert "query accuracy after so many steps on 4 examples (3 tasks)" in printed
    assert printed.count("in-context: left out with 5 examples, for which a row of data.context = 20 tokens") == 1
    assert "AdamW from the weights that the run began with, rate (of 0.01, 0.1) and steps (up to 1)" in printed
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    found = {tag.removeprefix("adaptation/") for tag in events.Tags()["scalars"] if tag.startswith("adaptation/")}
    arms = ("gradient", "in_context", "both", "fine_tuning", "in_context_baseline")
    assert found == {f"{arm}_{metric}" for arm in arms for metric in ("accuracy", "loss")}
    trained = by_name(callback.latest.by_support)["gradient", 4, 1]
    assert events.Scalars("adaptation/gradient_loss")[0].value == pytest.approx(trained.loss.value)
    assert set(events.Tags()["images"]) == {"adaptation/steps", "adaptation/support"}
    baseline = json.loads((tmp_path / "summary.json").read_text())["baselines"]["val/accuracy"]
    assert baseline["name"] == "(fine-tuning)"
    assert baseline["value"] == pytest.approx(events.Scalars("adaptation/fine_tuning_accuracy")[0].value)


def test_all_ways_see_the_same_tasks(tmp_path, monkeypatch):
    """The queries of all sizes are equal; a smaller support set is the beginning of a larger one, in the prompt too."""
    seen, compare, data = {}, adaptation_callback.compare, ciphers()

    def spy(learned, rates, baseline, trials, trained, settings):
        trials = list(trials)
        seen.update({trial.support: trial for trial in trials})
        return compare(learned, rates, baseline, trials, trained, settings)

    monkeypatch.setattr(adaptation_callback, "compare", spy)
    fit(tmp_path, decoder(), data, [curves()])
    assert sorted(seen) == [0, 2, 4]
    for support, trial in seen.items():
        assert torch.equal(trial.episodes.query.inputs[0], seen[4].episodes.query.inputs[0])
        assert torch.equal(trial.episodes.support.inputs[0], seen[4].episodes.support.inputs[0][:, :support])
        for task in range(3):
            examples = [text(data, trial.episodes.support, task, row) for row in range(support)]
            query = text(data, trial.episodes.query, task, 0)
            assert text(data, trial.in_context, task, 0) == "\n".join([*examples, query])
    assert not torch.equal(seen[4].tuning.query.inputs[0], seen[4].episodes.query.inputs[0][:2])


def text(data, examples, task, row):
    """Of a row of an encoded set: what it reads, and the last token that it should say."""
    targets = examples.targets[task, row]
    end = int((targets >= 0).nonzero()[-1])
    ids = [*examples.inputs[0][task, row][: end + 1].tolist(), int(targets[end])]
    return data.tokenizer.decode(ids)


def test_a_comparison_changes_no_step_and_draws_nothing(tmp_path):
    module, plain, callback = decoder(), decoder(), curves()
    trainer = fit(tmp_path / "with", module, ciphers(), [callback])
    fit(tmp_path / "without", plain, ciphers(), [])
    for one, other in zip(module.network.parameters(), plain.network.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.requires_grad
    before, latest = random_state(), callback.latest
    callback.on_train_end(trainer, module)
    assert random_state() == before
    assert callback.latest == latest


def test_modes_are_given_back(tmp_path):
    module, data, callback = decoder(), ciphers(), curves()
    trainer = fit(tmp_path, module, data, [callback])
    module.network.train()
    module.network.decoder.drop.eval()
    before = [part.training for part in module.modules()]
    callback.on_train_end(trainer, module)
    assert [part.training for part in module.modules()] == before


def validator(root, callback):
    return L.Trainer(
        accelerator="cpu", devices=1, default_root_dir=root, callbacks=[callback, RunSummary()], logger=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


def test_validation_alone_measures_the_same(tmp_path):
    module, data, callback = decoder(), ciphers(), curves()
    trainer = fit(tmp_path, module, data, [callback])
    checkpoint = str(tmp_path / "last.ckpt")
    trainer.save_checkpoint(checkpoint)
    first = torch.load(checkpoint, weights_only=True)["callbacks"]["AdaptationCurves"]["first"]
    assert first.keys() == dict(module.network.named_parameters()).keys()
    other = curves()
    validator(tmp_path / "again", other).validate(decoder(), datamodule=ciphers(), ckpt_path=checkpoint, verbose=False)
    assert other.latest == callback.latest


def test_weights_that_no_checkpoint_knows_leave_fine_tuning_out(tmp_path, capsys):
    callback = curves()
    validator(tmp_path, callback).validate(decoder(), datamodule=ciphers(), verbose=False)
    assert {point.arm for point in callback.latest.by_steps} == {"gradient", "in-context", "both"}
    assert "fine-tuning: left out, as no checkpoint was given" in capsys.readouterr().out


def test_a_run_that_began_without_it_has_no_first_weights_left(tmp_path):
    trainer = fit(tmp_path, decoder(), ciphers(), [])
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    callback = curves()
    fit(tmp_path, decoder(), ciphers(), [callback], max_steps=3, ckpt_path=str(tmp_path / "last.ckpt"))
    assert {point.arm for point in callback.latest.by_steps} == {"gradient", "in-context", "both"}


def test_numbers_are_adapted_to_by_gradient_only(tmp_path):
    sizes = {"support": 4, "query": 3, "tasks": 2, "steps": 2, "validation_tasks": 2}
    logger = TensorBoardLogger(tmp_path, name="", version="")
    module = MAMLModule(network=FeedForward(hidden=[8]), inner=InnerLoop(steps=1, lr=0.01))
    callback = curves(support=[2, 4], steps=[0, 2])
    fit(tmp_path, module, EpisodicDataModule(Sinusoid(), **sizes), [callback], logger)
    points = by_name(callback.latest.by_steps)
    assert {arm for arm, _, _ in points} == {"gradient", "fine-tuning"}
    assert [steps for arm, _, steps in points if arm == "gradient"] == [0, 1, 2]
    assert all(point.accuracy is None for point in points.values())
    assert set(json.loads((tmp_path / "summary.json").read_text())["baselines"]) == {"val/loss"}
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    assert set(events.Tags()["images"]) == {"adaptation/steps", "adaptation/support", "adaptation/functions"}
    assert "adaptation/gradient_accuracy" not in events.Tags()["scalars"]


def test_the_baseline_of_a_network_of_numbers_is_another_runs_export(tmp_path):
    sizes = {"support": 4, "query": 3, "tasks": 2, "steps": 2, "validation_tasks": 2}
    inner = InnerLoop(steps=1, lr=0.01)
    first = MAMLModule(network=FeedForward(hidden=[8]), inner=inner)
    fit(tmp_path / "first", first, EpisodicDataModule(Sinusoid(), **sizes), [])
    first.export(tmp_path / "export")
    same = curves(baseline=str(tmp_path / "export"), steps=[0, 1])
    second = MAMLModule(network=FeedForward(hidden=[8]), inner=inner)
    second.network.load_state_dict(first.network.state_dict())
    second.configure_optimizers = lambda: torch.optim.SGD(second.parameters(), lr=0.0)  # it stays what it is
    fit(tmp_path / "second", second, EpisodicDataModule(Sinusoid(), **sizes), [same])
    points = by_name(same.latest.by_steps)
    assert points["fine-tuning", 4, 0].loss == points["gradient", 4, 0].loss
    with pytest.raises(UserError, match=r"model\.safetensors: found other weights, expected those of a FeedForward"):
        fit(tmp_path / "third", MAMLModule(network=FeedForward(hidden=[9]), inner=inner),
            EpisodicDataModule(Sinusoid(), **sizes), [same])  # fmt: skip


def saved(folder, model, tokenizer):
    save_pretrained(folder, model, tokenizer_json=tokenizer.to_json())
    return str(folder)


def test_a_classifiers_baseline_may_be_a_language_model(tmp_path):
    data = EpisodicDataModule([Signs()], objective="classification", support=4, query=2, tasks=2, steps=2,
                              validation_tasks=2, tokenizer="train", context=8)  # fmt: skip
    folder = saved(tmp_path / "gpt", GPT(CONFIG), data.tokenizer)
    callback = curves(baseline=folder)
    trainer = fit(tmp_path, decoder(), data, [callback])
    assert {point.arm for point in callback.latest.by_steps} == {"gradient", "fine-tuning"}
    assert isinstance(trainer.lightning_module.network, LabellingModel)
    assert callback.state_dict() == {"first": {}}, "a folder holds them"


def test_a_baseline_that_cannot_be_one_is_told_before_the_first_step(tmp_path):
    data = ciphers()
    other = Tokenizer.train(["0123>edcba\n"], 16, "characters")
    folders = {
        "found another tokenizer, expected the run's": saved(tmp_path / "a", GPT(CONFIG), other),
        "no such folder": str(tmp_path / "nowhere"),
    }
    for message, folder in folders.items():
        callback = curves(baseline=folder)
        with pytest.raises(UserError, match=message):
            fit(tmp_path, decoder(), data, [callback])
        assert callback.latest is None
    small = GPT(DecoderConfig(vocab_size=4, n_positions=32, n_layer=1, n_head=2, n_embd=8))
    save_pretrained(tmp_path / "small", small)
    with pytest.raises(UserError, match=r"small: found 4 tokens, expected at least the data's \d+"):
        fit(tmp_path, decoder(), data, [curves(baseline=str(tmp_path / "small"))])


def test_it_needs_a_module_that_meta_learns(micro, tmp_path):
    data = PretrainingDataModule(str(micro.pretraining), micro.again(micro.pretraining), str(micro.gpt), context=16,
                                 cache_dir=str(tmp_path))  # fmt: skip
    with pytest.raises(UserError, match="AdaptationCurves: found PretrainingModule, expected a module that"):
        fit(tmp_path, PretrainingModule(micro.config()), data, [curves()])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tasks": 0}, "tasks: found 0, expected at least 1"),
        ({"finetuning_steps": 0}, "finetuning_steps: found 0, expected at least 1"),
        ({"finetuning_steps": -3}, "finetuning_steps: found -3, expected at least 1"),
        ({"seed": -1}, "seed: found -1, expected at least 0"),
        ({"learning_rates": [0.1, math.nan]}, r"learning_rates: found \[0.1, nan\], expected rates above 0"),
        ({"learning_rates": [math.inf]}, r"learning_rates: found \[inf\], expected rates above 0"),
        ({"learning_rates": []}, r"learning_rates: found \[\], expected rates above 0"),
        ({"steps": [0]}, r"found support \[2, 0\] and steps \[0\], expected numbers from 0, and at least 1 step"),
        ({"support": [-1]}, r"found support \[-1\]"),
        ({"learning_rates": [0.0]}, r"learning_rates: found \[0.0\], expected rates above 0"),
    ],
)
def test_settings_that_cannot_be(wrong, message):
    with pytest.raises(UserError, match=message):
        curves(**wrong)


def test_a_recipe_names_what_to_look_at():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callbacks", type=list[L.Callback])
    values = {"tasks": 20, "support": [0, 4], "steps": [0, 2], "baseline": "runs/joint/export"}
    given = [{"class_path": "gpt_modules.evaluation.AdaptationCurves", "init_args": values}]
    (callback,) = parser.instantiate(parser.parse_object({"callbacks": given})).callbacks
    assert (callback.tasks, callback.support, callback.settings.steps) == (20, [0, 4], [0, 2])
    assert (callback.baseline, callback.settings.finetuning_steps) == ("runs/joint/export", 2)


def test_processes_agree_on_who_waits(monkeypatch):
    """One process measures and all wait for it, once: a second wait of the others would never end."""
    waits = []
    trainer = L.Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    monkeypatch.setattr(L.Trainer, "is_global_zero", False)
    monkeypatch.setattr(trainer.strategy, "barrier", lambda: waits.append(1))
    other = curves()
    other.on_train_end(trainer, decoder())
    other.on_fit_end(trainer, decoder())
    assert (len(waits), other.latest) == (1, None)
    resumed = curves()
    resumed.on_fit_end(trainer, decoder())
    assert len(waits) == 2, "a run that was cut off after its last step has no other end"
