"""Predictions, one line a row."""

import json

import lightning.pytorch as L

from gpt_modules.training.callbacks.predictions import PredictionFile


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
