"""Baselines measured at the start of a run, on the run's own data, and shown beside its metrics; probes measured along
it.
"""

import logging
from itertools import combinations
from typing import Any

import lightning.pytorch as L

from gpt_modules.errors import UserError, expect
from gpt_modules.evaluation.baselines import BagOfWords, KneserNey, NaiveBayes
from gpt_modules.evaluation.probes import Item, Probe, read_items, run_probe
from gpt_modules.evaluation.tasks.callback import language_model
from gpt_modules.storage.documents import settings_of

log = logging.getLogger(__name__)


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
        expect(order >= 1, "NgramBaseline: order", order, "at least 1")
        self.order = order

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count and score: less than a second for a million tokens."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not trainer.is_global_zero:
            return
        if len(data.validation_tokens) < self.order:
            _leave_out("NgramBaseline", f"{len(data.validation_tokens)} validation tokens", f"at least {self.order}")
        else:
            model = KneserNey(data.train_tokens, data.tokenizer.vocab_size, self.order)
            self._report(trainer, "val/perplexity", f"({self.order}-gram)", model.perplexity(data.validation_tokens))


class BagOfWordsBaseline(_Baseline):
    """A linear scorer over words: pair accuracy on the comparisons of a reward model, or how often the right answer of
    a multiple-choice task scores highest.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Fit on the first epoch's rows, test on the validation rows."""
        if not trainer.is_global_zero:
            return
        train, validation = trainer.datamodule.rows()  # type: ignore[attr-defined]
        if not {"choices", "ranking"} & {*train[0]}:
            _leave_out("BagOfWordsBaseline", "rows without answers to compare", "rankings or multiple_choice")
            return
        if not pairs(train) or not pairs(validation):
            found = f"{len(pairs(train))} training and {len(pairs(validation))} validation pairs that are no ties"
            _leave_out("BagOfWordsBaseline", found, "at least 1 of each")
            return
        model = BagOfWords(pairs(train))
        chosen = "choices" in validation[0]
        accuracy = choice_accuracy(model, validation) if chosen else model.accuracy(pairs(validation))
        self._report(trainer, "val/accuracy", "(bag of words)", accuracy)


class NaiveBayesBaseline(_Baseline):
    """Accuracy of naive Bayes on the classes and texts of a fine-tuning run; of a pair, on the words of both texts."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Fit on the training rows, test on the validation rows."""
        if not trainer.is_global_zero:
            return
        train, validation = trainer.datamodule.rows()  # type: ignore[attr-defined]
        if "choices" in train[0] or not all(isinstance(row["label"], int) for row in train):
            _leave_out("NaiveBayesBaseline", "a task without classes", "classification, entailment or similarity")
            return
        if not validation:
            _leave_out("NaiveBayesBaseline", "no validation row", "at least 1")
            return
        (texts, labels), held_out = classes(train), classes(validation)
        model = NaiveBayes(texts, labels, 1 + max(labels))
        self._report(trainer, "val/accuracy", "(naive Bayes, uni- and bigrams)", model.accuracy(*held_out))


class ZeroShotProbes(L.Callback):
    """Measures a language model on tasks it is not taught, with every validation and before the first step.

    Logs `probe/<name>_accuracy`, for cola `probe/<name>_matthews` and `probe/<name>_auroc`. Files are read when the run
    starts, so that a bad row is told before the first step.

    Args:
        probes: tasks with local files, whose names differ.
    """

    def __init__(self, probes: list[Probe]) -> None:
        self.probes = probes = [settings_of(Probe, one, f"probes.{place}") for place, one in enumerate(probes)]
        metrics = [probe.metric for probe in probes]
        if not probes or len(set(metrics)) < len(metrics):
            raise UserError(f"probes: found {', '.join(metrics) or 'none'}, expected at least one, each name once")
        self.latest: dict[str, float] = {}
        self._items: list[list[Item]] | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Read and check every file."""
        self._open(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Straight to the logger, since what the module logs before the first step is dropped."""
        if not trainer.is_global_zero:
            return
        model = language_model(pl_module, "ZeroShotProbes")
        items = zip(self.probes, self._open(trainer, pl_module), strict=True)
        self.latest = {name: value for probe, rows in items for name, value in run_probe(probe, rows, model).items()}
        if trainer.logger is not None:
            trainer.logger.log_metrics(self.latest, step=trainer.global_step)

    def _open(self, trainer: L.Trainer, pl_module: L.LightningModule) -> list[list[Item]]:
        if self._items is None:
            n_positions = language_model(pl_module, "ZeroShotProbes").config.n_positions
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            self._items = [read_items(p, data.tokenizer, n_positions) for p in self.probes]
        return self._items


def _leave_out(name: str, found: str, expected: str) -> None:
    """A run goes on without what its data are too few for, or not of the kind, and says so."""
    log.warning("%s: left out: found %s, expected %s", name, found, expected)


def pairs(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(better, worse) for every untied pair of every row: of a ranking, or of the right answer and each wrong one."""
    found = []
    for row in rows:
        if "choices" in row:
            right, *wrong = _answers(row)
            found += [(right, other) for other in wrong]
            continue
        ranked = sorted(zip(row["ranking"], row["responses"], strict=True))
        found += [(better, worse) for (first, better), (second, worse) in combinations(ranked, 2) if first < second]
    return found


def choice_accuracy(model: BagOfWords, rows: list[dict[str, Any]]) -> float:
    """Share of the rows whose right answer scores highest; a tie of n counts 1 / n."""
    share = 0.0
    for row in rows:
        scores = model.scores(_answers(row))
        share += float(scores[0] == scores.max()) / int((scores == scores.max()).sum())
    return share / len(rows)


def classes(rows: list[dict[str, Any]]) -> tuple[list[str], list[int]]:
    """Texts, those of a pair joined, and labels."""
    texts = [f"{row['text']} {row['pair']}" if row.get("pair") is not None else row["text"] for row in rows]
    return texts, [row["label"] for row in rows]


def _answers(row: dict[str, Any]) -> list[str]:
    """Context and answer, the right answer first."""
    order = sorted(range(len(row["choices"])), key=lambda i: i != row["label"])
    return [f"{row['text']} {row['choices'][i]}" for i in order]
