"""Baselines measured at the start of a run, on the run's own data, and shown beside its metrics."""

from itertools import combinations
from typing import Any

import lightning.pytorch as L

from gpt_modules.evaluation.baselines import BagOfWords, KneserNey


class _Baseline(L.Callback):
    """Keeps `baselines` (metric -> name and value) for the run's summary, and logs them as `baseline/...`."""

    def __init__(self) -> None:
        self.baselines: dict[str, dict[str, Any]] = {}

    def _report(self, trainer: L.Trainer, metric: str, name: str, value: float) -> None:
        self.baselines[metric] = {"name": name, "value": value}
        if trainer.logger is not None:
            trainer.logger.log_metrics({f"baseline/{metric.removeprefix('val/')}": value}, step=0)


class NgramBaseline(_Baseline):
    """Perplexity of an interpolated Kneser-Ney model, trained and tested on the same tokens as the GPT.

    Args:
        order: length of the n-grams.
    """

    def __init__(self, order: int = 3) -> None:
        super().__init__()
        self.order = order

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count and score; seconds on a million tokens, in pure Python."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.is_global_zero:
            model = KneserNey(data.train_tokens, data.tokenizer.vocab_size, self.order)
            self._report(trainer, "val/perplexity", f"({self.order}-gram)", model.perplexity(data.validation_tokens))


class BagOfWordsBaseline(_Baseline):
    """Pair accuracy of a linear scorer over words, fitted to the same comparisons as the reward model."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Fit on the first epoch's rows, test on the validation rows."""
        if not trainer.is_global_zero:
            return
        train, validation = (pairs(rows) for rows in trainer.datamodule.rows())  # type: ignore[attr-defined]
        self._report(trainer, "val/accuracy", "(bag of words)", BagOfWords(train).accuracy(validation))


def pairs(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(better, worse) for every untied pair of every row."""
    found = []
    for row in rows:
        ranked = sorted(zip(row["ranking"], row["responses"], strict=True))
        found += [(better, worse) for (first, better), (second, worse) in combinations(ranked, 2) if first < second]
    return found
