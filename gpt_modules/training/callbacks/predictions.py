"""What a model predicts, in `predictions.jsonl`."""

import json
import sys
from itertools import zip_longest
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch.distributed as dist

from gpt_modules.storage.durable import check_writable, room_for

_NONE = object()


class PredictionFile(L.Callback):
    """Writes what `predict_step` returns, a list of plain rows a batch, to `<root>/predictions.jsonl`, in
    place of what an earlier `gpt predict` wrote there.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find out before the first batch whether there is room."""
        if stage == "predict" and trainer.is_global_zero:
            check_writable(Path(trainer.default_root_dir))

    def on_predict_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        """One line a row, as they come: a long prediction survives a cut. Of several processes the first one writes."""
        rows = _of_all_processes(outputs)
        if not trainer.is_global_zero:
            return
        path = _path(trainer)
        if not hasattr(self, "_file"):
            self._rows, self._replaced = 0, path.exists()
            with room_for(path):
                self._file = path.open("w", encoding="utf-8")
        with room_for(path):
            self._file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self._rows += len(rows)

    def on_predict_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Close the file, and say where it is."""
        if hasattr(self, "_file"):
            path = _path(trainer)
            with room_for(path):
                self._file.close()
            replaced = ", in place of an earlier file" if self._replaced else ""
            sys.stdout.write(f"done: {self._rows:,} predictions{replaced}  {path}\n")


def _path(trainer: L.Trainer) -> Path:
    return Path(trainer.default_root_dir) / "predictions.jsonl"


def _of_all_processes(rows: list[Any]) -> list[Any]:
    """A batch's rows in the order that one process would give: the processes take turns."""
    if not (dist.is_available() and dist.is_initialized()):
        return rows
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, rows)
    turns = zip_longest(*everyone, fillvalue=_NONE)
    return [row for turn in turns for row in turn if row is not _NONE]
