"""Predictions, one line a row."""

import json

import lightning.pytorch as L
import pytest

from gpt_modules.errors import UserError
from gpt_modules.training.callbacks.predictions import PredictionFile


def write(parts, tmp_path):
    trainer = L.Trainer(accelerator="cpu", default_root_dir=tmp_path, logger=False, enable_checkpointing=False)
    callback, (module, _) = PredictionFile(), parts()
    callback.setup(trainer, module, "predict")
    for rows in ([{"text": "é"}], [{"text": "b"}, {"text": "c"}]):
        callback.on_predict_batch_end(trainer, module, rows)
    callback.on_predict_end(trainer)


def test_the_last_line_says_where_they_are_and_what_they_replaced(parts, tmp_path, capsys):
    path = tmp_path / "predictions.jsonl"
    write(parts, tmp_path)
    assert capsys.readouterr().out == f"done: 3 predictions  {path}\n"
    write(parts, tmp_path)
    assert capsys.readouterr().out == f"done: 3 predictions, in place of an earlier file  {path}\n"


def test_predictions_are_one_line_a_row(parts, tmp_path):
    write(parts, tmp_path)
    assert [json.loads(line)["text"] for line in (tmp_path / "predictions.jsonl").read_text().splitlines()] == [
        "é",
        "b",
        "c",
    ]


def test_a_place_that_cannot_be_written_is_told_before_the_first_prediction(parts, tmp_path):
    (tmp_path / "file").write_text("")
    root = tmp_path / "file" / "run"
    trainer = L.Trainer(accelerator="cpu", default_root_dir=root, logger=False, enable_checkpointing=False)
    with pytest.raises(UserError, match="could not be written"):
        PredictionFile().setup(trainer, parts()[0], "predict")
