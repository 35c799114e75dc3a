"""What a model predicts, in `predictions.jsonl`."""

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as L


class PredictionFile(L.Callback):
    """Writes what `predict_step` returns, a list of plain rows a batch, to `<root>/predictions.jsonl`."""

    def on_predict_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        """One line a row, as they come: a long prediction survives a cut."""
        path = Path(trainer.default_root_dir) / "predictions.jsonl"
        if not hasattr(self, "_file"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w", encoding="utf-8")
        self._file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in outputs)

    def on_predict_end(self, *_: Any) -> None:
        """Close the file."""
        if hasattr(self, "_file"):
            self._file.close()
