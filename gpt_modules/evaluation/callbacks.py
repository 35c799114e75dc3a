"""Baselines measured at the start of a run, on the run's own data, and shown beside its metrics; probes measured along
it.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.loggers import TensorBoardLogger
from torch.distributed.fsdp import FSDPModule

from gpt_modules.backbone import GPT
from gpt_modules.errors import UserError
from gpt_modules.evaluation.baselines import BagOfWords, KneserNey, NaiveBayes
from gpt_modules.evaluation.definitions import find_tasks
from gpt_modules.evaluation.evaluate import Settings, Workload, measure, prepare, read_data, shots_of
from gpt_modules.evaluation.figures import shot_curve_figure
from gpt_modules.evaluation.metrics import Estimate
from gpt_modules.evaluation.probes import Item, Probe, read_items, run_probe


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
    """A linear scorer over words: pair accuracy on the comparisons of a reward model, or how often the right answer of
    a multiple-choice task scores highest.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Fit on the first epoch's rows, test on the validation rows."""
        if not trainer.is_global_zero:
            return
        train, validation = trainer.datamodule.rows()  # type: ignore[attr-defined]
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
            raise UserError("NaiveBayesBaseline: found a task without classes, expected classification, entailment or "
                            "similarity")  # fmt: skip
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
        self.probes = probes
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
        model = _language_model(pl_module, "ZeroShotProbes")
        items = zip(self.probes, self._open(trainer, pl_module), strict=True)
        self.latest = {name: value for probe, rows in items for name, value in run_probe(probe, rows, model).items()}
        if trainer.logger is not None:
            trainer.logger.log_metrics(self.latest, step=trainer.global_step)

    def _open(self, trainer: L.Trainer, pl_module: L.LightningModule) -> list[list[Item]]:
        if self._items is None:
            n_positions = _language_model(pl_module, "ZeroShotProbes").config.n_positions
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            self._items = [read_items(p, data.tokenizer, n_positions, data.cache_dir) for p in self.probes]
        return self._items


class FewShot(L.Callback):
    """Measures a language model on evaluation tasks with K demonstrations in the prompt, with every validation and
    before the first step.

    Logs each task's first metric as `few_shot/<task>/<K>` against the step; where the module counts `tokens_seen`, also
    as `few_shot_by_tokens/<task>/<K>` against that; and the curve over K as a figure. Items and prompts are the same
    each time. Data is read when the run starts, so that a bad row is told before the first step.

    Args:
        tasks: files, or names of files in `recipes/evaluation/`.
        shots: numbers of demonstrations.
        limit: items of each task, the first so many.
        seed: of the demonstrations drawn.
    """

    def __init__(self, tasks: list[str], shots: Sequence[int] = (0,), limit: int | None = 200, seed: int = 0) -> None:
        if not tasks or not shots or min(shots) < 0:
            raise UserError(f"FewShot: found tasks {tasks} and shots {shots}, expected at least one of each, 0 or more")
        self.tasks = tasks
        self.shots = sorted(set(shots))
        self.settings = Settings(limit=limit, seed=seed)
        self.latest: dict[str, dict[int, Estimate]] = {}
        """Task -> K -> its first metric."""
        self._work: list[Workload] | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Read and check every task's data, and write its prompts."""
        self._open(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Straight to the logger, since what the module logs before the first step is dropped."""
        if not trainer.is_global_zero:
            return
        model, data = _language_model(pl_module, "FewShot"), trainer.datamodule  # type: ignore[attr-defined]
        found: dict[str, dict[int, Estimate]] = {}
        names = set()
        for work in self._open(trainer, pl_module):
            metrics = measure(work, model, data.tokenizer, self.settings).metrics
            name, found.setdefault(work.task.name, {})[work.shots] = next(iter(metrics.items()))
            names.add(name)
        self.latest = found
        self._log(trainer, getattr(pl_module, "tokens_seen", None), names.pop() if len(names) == 1 else "score")

    def _log(self, trainer: L.Trainer, tokens: int | None, metric: str) -> None:
        values = {f"{task}/{k}": one.value for task, curve in self.latest.items() for k, one in curve.items()}
        step = trainer.global_step
        for logger in trainer.loggers:
            logger.log_metrics({f"few_shot/{name}": value for name, value in values.items()}, step=step)
            if not isinstance(logger, TensorBoardLogger):
                continue
            for name, value in values.items() if tokens is not None else ():
                logger.experiment.add_scalar(f"few_shot_by_tokens/{name}", value, tokens)
            curves = {task: sorted(curve.items()) for task, curve in self.latest.items() if len(curve) > 1}
            if curves:
                title = f"step {step}" if tokens is None else f"{tokens:,} tokens seen"
                logger.experiment.add_figure("few_shot/shots", shot_curve_figure(curves, metric, title), step)

    def _open(self, trainer: L.Trainer, pl_module: L.LightningModule) -> list[Workload]:
        if self._work is None:
            n_positions = _language_model(pl_module, "FewShot").config.n_positions
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            self._work = []
            for task in find_tasks(self.tasks):
                rows = read_data(task, self.settings, self.shots, data.cache_dir)
                self._work += [prepare(task, rows, data.tokenizer, n_positions, count, self.settings)
                               for count in shots_of(task, self.shots)]  # fmt: skip
        return self._work


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


def _language_model(pl_module: L.LightningModule, callback: str) -> GPT:
    model = getattr(pl_module, "model", None)
    if not isinstance(model, GPT):
        raise UserError(f"{callback}: found {type(pl_module).__name__}, expected a module that trains a GPT")
    if any(isinstance(part, FSDPModule) for part in model.modules()):  # the first process alone would wait forever
        raise UserError(f"{callback}: found a model in shards, expected trainer.strategy auto or ddp")
    return model
