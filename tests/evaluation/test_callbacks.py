"""Baselines that a run measures on its own data."""

import json
from types import SimpleNamespace

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from gpt_modules.data import PretrainingDataModule, RewardDataModule
from gpt_modules.errors import UserError
from gpt_modules.evaluation import (
    BagOfWords,
    BagOfWordsBaseline,
    NaiveBayes,
    NaiveBayesBaseline,
    NgramBaseline,
    Probe,
    ZeroShotProbes,
)
from gpt_modules.evaluation.baselines import KneserNey
from gpt_modules.evaluation.callbacks import choice_accuracy, pairs
from gpt_modules.training import PretrainingModule, RewardModule
from gpt_modules.training.callbacks.summary import RunSummary


def fit(module, data, root, callback):
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "logger": False,
    }
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_steps=1, default_root_dir=root, callbacks=[callback, RunSummary()], **quiet
    )
    trainer.fit(module, datamodule=data)
    return json.loads((root / "summary.json").read_text())["baselines"]


def test_an_ngram_model_on_the_same_tokens(micro, tmp_path):
    lines = micro.pretraining.read_text().splitlines(keepends=True)
    (tmp_path / "same.jsonl").write_text("".join(lines[::-1]))  # as a file it is another one
    data = PretrainingDataModule(
        str(micro.pretraining), str(tmp_path / "same.jsonl"), str(micro.gpt), context=16, cache_dir=str(tmp_path)
    )
    found = fit(PretrainingModule(micro.config()), data, tmp_path, NgramBaseline(order=2))["val/perplexity"]
    stream = np.array(
        [
            t
            for row in micro.pretraining.read_text().splitlines()
            for t in [*micro.tokenizer.encode(json.loads(row)["text"]), micro.tokenizer.eos_id]
        ]
    )
    assert found["value"] == pytest.approx(KneserNey(stream, micro.vocab_size, 2).perplexity(stream), rel=0.05)
    assert "2-gram" in found["name"]


def test_a_bag_of_words_on_the_same_comparisons(micro, tmp_path):
    data = RewardDataModule(str(micro.comparisons), tokenizer=str(micro.gpt), context=32, cache_dir=str(tmp_path))
    found = fit(RewardModule(str(micro.gpt)), data, tmp_path, BagOfWordsBaseline())["val/accuracy"]
    assert found["value"] > 0.95, "the words good and bad decide"


def test_pairs_of_a_ranking_leave_ties_out():
    row = {"responses": ["third", "first", "also first"], "ranking": [2, 1, 1]}
    assert sorted(pairs([row])) == [("also first", "third"), ("first", "third")]


def trainer_of(train, validation):
    """A trainer as far as a baseline looks at it: its data has rows of training and validation."""
    trainer = L.Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    trainer.datamodule = SimpleNamespace(rows=lambda: (train, validation))
    return trainer


def baseline(callback, train, validation):
    callback.on_fit_start(trainer_of(train, validation), L.LightningModule())
    return callback.baselines["val/accuracy"]


def test_naive_bayes_on_the_rows_of_a_fine_tuning_run():
    train = [
        {"text": "all dogs", "pair": "some dogs", "label": 0},
        {"text": "no dogs", "pair": "some dogs", "label": 2},
    ]
    validation = [{"text": "dogs", "pair": "no", "label": 2}, {"text": "all", "pair": "all", "label": 2}]
    found = baseline(NaiveBayesBaseline(), train * 3, validation)
    assert found == {"name": "(naive Bayes, uni- and bigrams)", "value": 0.5}
    single = [{"text": "good", "label": 1}, {"text": "bad", "label": 0}]
    assert baseline(NaiveBayesBaseline(), single * 3, single)["value"] == 1.0
    assert NaiveBayes(["good", "bad"], [1, 0], 2).accuracy(["good", "bad"], [1, 0]) == 1.0


@pytest.mark.parametrize("row", [{"text": "a", "label": 0.5}, {"text": "a", "choices": ["b", "c"], "label": 0}])
def test_naive_bayes_needs_classes(row, caplog):
    assert_left_out(
        NaiveBayesBaseline, [row], [row], "a task without classes, expected classification, entailment or", caplog
    )


def test_a_bag_of_words_needs_answers(caplog):
    row = {"text": "a", "label": 0}
    assert_left_out(
        BagOfWordsBaseline, [row], [row], "rows without answers to compare, expected rankings or multiple_", caplog
    )


def assert_left_out(callback, train, validation, found, log):
    left_out = callback()
    left_out.on_fit_start(trainer_of(train, validation), L.LightningModule())
    assert log.messages[-1].startswith(f"{callback.__name__}: left out: found {found}")
    assert left_out.baselines == {}


def test_a_bag_of_words_on_multiple_choice():
    """Words tell which answer is right, wherever it stands; the context tells nothing."""
    answers = [["good", "bad", "poor"], ["bad", "good"], ["poor", "bad", "good", "bad bad"]]
    rows = [{"text": "the film is", "choices": choices, "label": choices.index("good")} for choices in answers]
    assert baseline(BagOfWordsBaseline(), rows * 4, rows) == {"name": "(bag of words)", "value": 1.0}
    assert len(pairs(rows)) == 2 + 1 + 3


TIE = {"responses": ["one", "other"], "ranking": [1, 1]}
RANKED = {"responses": ["good", "bad"], "ranking": [1, 2]}


@pytest.mark.parametrize(
    ("callback", "train", "validation", "found"),
    [
        (BagOfWordsBaseline, [RANKED], [TIE], "1 training and 0 validation pairs that are no ties"),
        (BagOfWordsBaseline, [TIE], [RANKED], "0 training and 1 validation pairs that are no ties"),
        (BagOfWordsBaseline, [RANKED], [], "1 training and 0 validation pairs that are no ties"),
        (NaiveBayesBaseline, [{"text": "good", "label": 1}], [], "no validation row"),
    ],
)
def test_a_baseline_of_too_few_rows_is_left_out_aloud(callback, train, validation, found, caplog):
    assert_left_out(callback, train, validation, f"{found}, expected at least 1", caplog)


def test_an_ngram_model_of_fewer_tokens_than_an_ngram_has(caplog):
    trainer, tokenizer = trainer_of([], []), SimpleNamespace(vocab_size=5)
    trainer.datamodule = SimpleNamespace(train_tokens=np.arange(4), validation_tokens=np.arange(2), tokenizer=tokenizer)
    callback = NgramBaseline(order=3)
    callback.on_fit_start(trainer, L.LightningModule())
    assert caplog.messages[-1] == "NgramBaseline: left out: found 2 validation tokens, expected at least 3"
    assert callback.baselines == {}


def test_a_tie_of_answers_is_a_guess():
    model = BagOfWords([("good good", "bad")] * 4)
    rows = [{"text": "", "choices": ["so", "thus", "bad", "hence"], "label": 1}]
    assert choice_accuracy(model, rows) == pytest.approx(1 / 3)


class Kept(L.loggers.logger.DummyLogger):
    """Keeps what is logged of probes."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def log_metrics(self, metrics, step=None):
        self.kept += [(step, name, value) for name, value in metrics.items() if name.startswith("probe/")]


def probes(folder, text="the film is so"):
    rows = [{"text": text, "choices": ["good", "bad"], "label": n % 2} for n in range(6)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = str(folder / "rows.jsonl")
    return ZeroShotProbes([Probe("choice", path, name="story"), Probe("cola", path), Probe("sst2", path, limit=4)])


def pretrain(micro, folder, callbacks, logger=None):
    """Four steps with a validation before them and after every second one; the module and the logger."""
    torch.manual_seed(0)
    data = PretrainingDataModule(
        str(micro.pretraining), tokenizer=str(micro.gpt), context=16, batch_size=4, cache_dir=str(folder)
    )
    module, logger = PretrainingModule(micro.config()), logger or Kept()
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_steps=4, val_check_interval=2, limit_val_batches=1, num_sanity_val_steps=1,
        default_root_dir=folder, callbacks=callbacks, logger=logger, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return module, logger, trainer


def test_probes_are_measured_with_every_validation_and_change_no_step(micro, tmp_path):
    callback = probes(tmp_path)
    module, logger, trainer = pretrain(micro, tmp_path, [callback])
    names = ["probe/story_accuracy", "probe/cola_matthews", "probe/cola_auroc", "probe/sst2_accuracy"]
    assert [(step, name) for step, name, _ in logger.kept] == [(step, name) for step in (0, 2, 4) for name in names]
    assert {name: value for step, name, value in logger.kept if step == 4} == callback.latest
    assert callback.latest["probe/story_accuracy"] == 0.5, "one question six times, each answer right three times"
    without, _, _ = pretrain(micro, tmp_path, [])
    for one, other in zip(module.parameters(), without.parameters(), strict=True):
        assert torch.equal(one, other), "dropout of a run with probes draws the same numbers"
    fresh = probes(tmp_path)
    trainer.callbacks.append(fresh)
    trainer.validate(module, datamodule=trainer.datamodule, verbose=False)
    assert fresh.latest == callback.latest, "validation alone reads the files too"


def test_a_bad_row_is_told_before_the_first_step(micro, tmp_path):
    callback = probes(tmp_path, text="the film " * 20)
    with pytest.raises(UserError, match=r"rows\.jsonl:1: text: found \d+ tokens to score in .*, expected 1 to"):
        pretrain(micro, tmp_path, [callback])
    assert callback.latest == {}


def test_probes_need_a_language_model_and_names_of_their_own(micro, tmp_path):
    with pytest.raises(UserError, match="ZeroShotProbes: found RewardModule, expected a module that trains a GPT"):
        probes(tmp_path).on_fit_start(trainer_of([], []), RewardModule(str(micro.reward)))
    for kinds, found in ((["cola", "cola"], "probe/cola, probe/cola"), ([], "none")):
        with pytest.raises(UserError, match=f"probes: found {found}, expected at least one, each name once"):
            ZeroShotProbes([Probe(kind, "rows.jsonl") for kind in kinds])


def test_a_recipe_names_probes():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callbacks", type=list[L.Callback])
    values = {"probes": [{"kind": "choice", "file": "a.jsonl", "choices": ["one", "two"], "limit": 3}]}
    given = [{"class_path": "gpt_modules.evaluation.ZeroShotProbes", "init_args": values}]
    (callback,) = parser.instantiate(parser.parse_object({"callbacks": given})).callbacks
    assert callback.probes == [Probe("choice", "a.jsonl", choices=["one", "two"], limit=3)]


@pytest.mark.parametrize("order", [0, -1])
def test_ngrams_of_no_token_are_refused(order):
    with pytest.raises(UserError, match=rf"^NgramBaseline: order: found {order}, expected at least 1$"):
        NgramBaseline(order)
