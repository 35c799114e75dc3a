"""Baselines that a run measures on its own data."""

import json

import lightning.pytorch as L
import numpy as np
import pytest

from gpt_modules.data import PretrainingDataModule, RewardDataModule
from gpt_modules.evaluation import BagOfWordsBaseline, NgramBaseline
from gpt_modules.evaluation.baselines import KneserNey
from gpt_modules.evaluation.callbacks import pairs
from gpt_modules.training import PretrainingModule, RewardModule
from gpt_modules.training.callbacks import RunSummary


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
    data = PretrainingDataModule(
        str(micro.pretraining), str(micro.pretraining), str(micro.gpt), context=16, cache_dir=str(tmp_path)
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
