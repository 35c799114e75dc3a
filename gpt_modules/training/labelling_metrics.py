"""How well a labelled task is done: the metrics of GPT-1's tables, from the outputs of its head, and predictions in
words.
"""

import logging
import math
import warnings
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Real
from torch import Tensor
from torchmetrics import MeanSquaredError, MetricCollection, PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryF1Score,
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassMatthewsCorrCoef,
)

from gpt_modules.functional import expected_score, soft_targets
from gpt_modules.labelling import Labelling

log = logging.getLogger(__name__)


def task_loss(outputs: Float[Tensor, "B L"], labels: Tensor, task: Labelling) -> Float[Tensor, ""]:
    """-log P(y | x) (Radford et al. 2018, equation 4), a mean over the labelled examples; 0 where there is none.

    Numbers: cross-entropy with a distribution over the whole scores (`levels`), or the squared error in standard
    deviations (regression).
    """
    labelled = has_label(labels, task)  # never used as an index here: a GPU would have to wait
    if task.levels is not None:
        losses = F.cross_entropy(outputs.float(), soft_targets(labels, *task.levels), reduction="none")
    elif task.kind == "regression":
        losses = (outputs.float().squeeze(1) - (labels - task.mean) / task.std).square()
    else:
        losses = F.cross_entropy(outputs.float(), labels, reduction="none")
    return torch.where(labelled, losses, 0.0).sum() / labelled.sum().clamp(min=1)


def has_label(labels: Tensor, task: Labelling) -> Tensor:
    """(B,) whether an example has one; a row that only fills a batch has none."""
    return ~labels.isnan() if task.numeric else labels >= 0


def decide(outputs: Float[Tensor, "B L"], task: Labelling) -> Tensor:
    """What the model says: the class or answer with the highest probability, or the expected number."""
    if task.levels is not None:
        return expected_score(outputs.float(), task.levels[0])
    if task.kind == "regression":
        return outputs.float().squeeze(1) * task.std + task.mean
    return outputs.argmax(1)


class Matthews(MulticlassMatthewsCorrCoef):
    """Matthews' coefficient, 0 where one class is all that is predicted or all there is: the covariance is 0 then, and
    so by convention is 0 / 0, which torchmetrics rounds to something else.
    """

    def compute(self) -> Tensor:
        counts = self.confmat
        constant = min(int((counts.sum(axis) > 0).sum()) for axis in (0, 1)) < 2
        return counts.new_zeros((), dtype=torch.float32) if constant else super().compute()


def build_metrics(task: Labelling) -> MetricCollection:
    """Accuracy, F1 (of the second class, or the mean over more than two) and Matthews for classes; Pearson, Spearman
    and the squared error for numbers; accuracy for answers.
    """
    if task.numeric:
        with warnings.catch_warnings():  # that ranks need all values at once is known here
            warnings.filterwarnings("ignore", "Metric `SpearmanCorrcoef`", UserWarning)
            correlations = {"pearson": PearsonCorrCoef(), "spearman": SpearmanCorrCoef()}
        return MetricCollection({**correlations, "mse": MeanSquaredError()})
    if task.kind == "multiple_choice":
        return MetricCollection({"accuracy": BinaryAccuracy()})
    classes = max(2, len(task.labels))
    return MetricCollection(
        {
            "accuracy": MulticlassAccuracy(classes, average="micro"),
            "f1": BinaryF1Score() if classes == 2 else MulticlassF1Score(classes, average="macro"),
            "matthews": Matthews(classes),
        }
    )


def answered(outputs: Tensor, labels: Tensor, task: Labelling) -> tuple[Tensor, Tensor]:
    """What is decided and what is right, of a batch's labelled examples."""
    labelled = has_label(labels, task).nonzero()[:, 0]
    decided, right = decide(outputs[labelled], task), labels[labelled]
    if task.kind == "multiple_choice":  # answers have no names: what counts is whether it is the right one
        return (decided == right).long(), torch.ones_like(right)
    return decided, right


def measured(decided: Real[Tensor, "N"], right: Real[Tensor, "N"], task: Labelling) -> dict[str, float]:
    """The metrics of all that was `answered`; NaN where nothing was, and for correlations where nothing differs."""
    metrics = build_metrics(task)
    if not len(right):
        return {str(name): math.nan for name in metrics}
    to = torch.float64 if task.numeric else torch.int64  # the squares of close scores vanish in fewer digits
    decided, right = decided.to(to), right.to(to)
    constant = [name for name, values in (("predictions", decided), ("labels", right)) if values.min() == values.max()]
    if task.numeric and constant:
        _tell_undefined(" and all ".join(constant))
        return {"pearson": math.nan, "spearman": math.nan, "mse": float((decided - right).square().mean())}
    if task.numeric:
        metrics.set_dtype(to)
    metrics.update(decided, right)
    return {name: float(value) for name, value in metrics.compute().items()}


@cache
def _tell_undefined(alike: str) -> None:
    """Once, as it is so at every validation."""
    log.warning("pearson, spearman: undefined (nan): all %s are the same number", alike)


def has_named_classes(task: Labelling) -> bool:
    """Whether it can be said which class was taken for which."""
    return bool(task.labels) and not task.numeric and task.kind != "multiple_choice"


def confusion(decided: Real[Tensor, "N"], right: Real[Tensor, "N"], classes: int) -> Int[Tensor, "L L"]:
    """How often each class (row) was taken for each (column)."""
    cells = right.long() * classes + decided.long()
    return cells.bincount(minlength=classes**2).view(classes, classes)


def prediction_rows(outputs: Tensor, labels: Tensor, task: Labelling) -> list[dict[str, Any]]:
    """Each example's prediction in words, with probabilities where there are classes or answers, beside its label if
    it has one.
    """
    decided, labelled = decide(outputs, task).tolist(), has_label(labels, task).tolist()
    probabilities, answers = outputs.float().softmax(1).tolist(), outputs.isfinite().tolist()
    rows = []
    for i, (decision, label) in enumerate(zip(decided, labels.tolist(), strict=True)):
        row: dict[str, Any] = {"prediction": _name(decision, task)}
        if task.kind == "multiple_choice":
            row["probabilities"] = [p for p, exists in zip(probabilities[i], answers[i], strict=True) if exists]
        elif not task.numeric:
            row["probabilities"] = dict(zip(task.labels, probabilities[i], strict=True))
        rows.append({**row, "label": _name(label, task)} if labelled[i] else row)
    return rows


def _name(value: float, task: Labelling) -> str | float:
    return task.labels[int(value)] if has_named_classes(task) else value
