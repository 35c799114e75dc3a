"""What held-out preferences say of a reward model, or of the rewards that a policy implies: how often it is right,
where, and whether length decides.

Pairs are those of `accuracy`: every pair of a row's answers that is no tie, of every vote; one whose answers score the
same counts one half, as a guess would. What no pair belongs to has
no value, and is not logged.

accuracy_round/N                 of each of the newest 20 rounds of comparisons.
accuracy_newest_round            of the newest one, where an old reward model goes wrong first.
accuracy_labeler/NAME            of each of the 20 labelers with the most pairs.
accuracy_margin/score_...        by the difference of the labeler's scores, 1 to 7, of the two answers, where both have
                                 one ("0_or_less": the ranks say what the scores do not);
accuracy_margin/rank_...         else by the difference of their ranks.
accuracy_length/shorter_1_to_3   by how many tokens the preferred answer is shorter or longer than the other one.
accuracy_shorter_preferred       of all pairs whose preferred answer is the shorter one, and
accuracy_longer_preferred        the longer one: a model that goes by length is good at one of them.
length_correlation               Pearson's r of score and length in tokens, both as deviations from the mean of the
                                 answers that were ranked together, so that prompts do not confound it.
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import lightning.pytorch as L
import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_calibration_error

from gpt_modules.data.batches import RankingBatch
from gpt_modules.functional import (
    deviation_correlation,
    group_means,
    pair_margins,
    ranking_losses,
    row_deviations,
    untied_pairs,
)
from gpt_modules.training.callbacks.figures import parts_figure, reliability_figure
from gpt_modules.training.callbacks.writer import log_interval, tensorboard
from gpt_modules.training.processes import HeldOut

CALIBRATION_BINS = 10
MOST = 20  # curves of a kind: more than one can tell apart
LONGEST_NAME = 60  # characters
SCORE_MARGINS = ("score_0_or_less", "score_1", "score_2", "score_3_or_more")
MARGINS = (*SCORE_MARGINS, "rank_1", "rank_2", "rank_3_or_more")
LENGTHS = (
    *("shorter_64_or_more", "shorter_16_to_63", "shorter_4_to_15", "shorter_1_to_3", "same"),
    *("longer_1_to_3", "longer_4_to_15", "longer_16_to_63", "longer_64_or_more"),
)
_LENGTH_EDGES = (-63, -15, -3, 0, 1, 4, 16, 64)  # where the next one of LENGTHS begins


class Preferences(NamedTuple):
    """All held-out rows of all processes, float64: losses of prompts, margins of pairs; and metrics by name."""

    losses: Tensor
    margins: Tensor
    metrics: dict[str, float]


class PreferenceMetrics:
    """Measures batch after batch; read together, over all processes."""

    def __init__(self) -> None:
        self._prompts = HeldOut("loss")
        self._pairs = HeldOut("margin", "round", "labeler", "clearness", "longer")
        self._answers = HeldOut("score", "length")

    def add(self, batch: RankingBatch, scores: Tensor) -> None:
        """A batch and the raw scores (P, K) of its answers."""
        losses, counted = ranking_losses(scores, batch.ranks, batch.mask)
        self._prompts.add(loss=losses[counted])
        lengths = batch.lengths[batch.index.clamp(min=0)]
        prompt, better, worse = untied_pairs(batch.ranks, batch.mask)
        self._pairs.add(
            margin=scores[prompt, better] - scores[prompt, worse],
            round=batch.rounds[prompt],
            labeler=batch.labelers[prompt],
            clearness=_clearness(batch, prompt, better, worse),
            longer=lengths[prompt, better] - lengths[prompt, worse],
        )
        self._answers.add(score=row_deviations(scores, batch.mask), length=row_deviations(lengths, batch.mask))

    def take(self, labelers: Mapping[str, int]) -> Preferences:
        """All of it; the next `add` begins anew. Called by all processes.

        Args:
            labelers: name -> number in the batches.
        """
        pairs, answers = self._pairs.take(), self._answers.take()
        right = _right(pairs["margin"])
        found = [
            _by_round(right, pairs["round"].long()),
            _by_labeler(right, pairs["labeler"].long(), labelers),
            _by_bin("accuracy_margin", right, pairs["clearness"].long(), MARGINS),
            _by_length(right, pairs["longer"].long()),
        ]
        metrics = {name: value for group in found for name, value in group.items()}
        correlation = float(deviation_correlation(answers["score"], answers["length"]))
        if math.isfinite(correlation):  # neither the scores nor the lengths are all the same
            metrics["length_correlation"] = correlation
        return Preferences(self._prompts.take()["loss"], pairs["margin"], metrics)

    def log(self, module: L.LightningModule, stage: str) -> None:
        """All of it as `<stage>/...`, with the loss over all prompts that have a pair, and over all untied pairs the
        accuracy, the margin and the expected calibration error; figures of the calibration and of the parts.
        """
        losses, margins, metrics = self.take(getattr(module.trainer.datamodule, "held_out_labelers", {}))  # type: ignore[attr-defined]
        preferences, right = torch.sigmoid(margins), _right(margins)
        values = {
            "loss": losses.mean(),
            "accuracy": right.mean(),
            "margin": margins.mean(),
            "calibration_error": calibration_error(margins),
        }
        # Equal on all processes; said, as Lightning warns otherwise.
        module.log_dict({f"{stage}/{name}": float(value) for name, value in values.items()}, True, sync_dist=True)
        module.log_dict({f"{stage}/{name}": value for name, value in metrics.items()}, sync_dist=True)
        if "length_correlation" not in metrics:  # or an earlier validation's would be taken for this one's
            module.trainer.callback_metrics.pop(f"{stage}/length_correlation", None)
        writer = tensorboard(module.trainer)
        if writer is not None and not module.trainer.sanity_checking:
            figure = reliability_figure(preferences.numpy(), CALIBRATION_BINS)
            writer.add_figure(f"{stage}/reliability", figure, module.global_step)
            parts = {name: value for name, value in metrics.items() if "/" in name}
            figure = parts_figure(parts, float(values["accuracy"]))
            writer.add_figure(f"{stage}/accuracy_of_parts", figure, module.global_step)


class StepRatio:
    """A mean over what an optimizer step has of something, of all micro-batches and processes, told beside the loss.

    Args:
        name: of the metric.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._sums: list[Tensor] = []  # of the micro-batches: the sum, and what it is over

    def add(self, total: Tensor, count: Tensor) -> None:
        """A micro-batch's."""
        self._sums.append(torch.stack([total.detach(), count]).double())

    def close(self, module: L.LightningModule) -> None:
        """Called before the optimizer's step: log it, where one is logged."""
        if (module.global_step + 1) % log_interval(module.trainer) == 0:
            total, count = module.trainer.strategy.reduce(torch.stack(self._sums).sum(0), reduce_op="sum")
            module.log(self.name, total / count)
        self._sums = []


def right_pairs(batch: RankingBatch, scores: Tensor) -> tuple[Tensor, Tensor]:
    """How many of a batch's untied pairs the scores (P, K) of its answers put into the right order, of how many."""
    margins, counted = pair_margins(scores.detach(), batch.ranks, batch.mask)
    return torch.where(counted, _right(margins), 0.0).sum(), counted.sum()


def tag_of(name: str) -> str:
    """A name as TensorBoard's tags have it: letters, digits, `_`, `-` and `.`. One that is altered, or reads as if it
    had been, ends in a digest of itself, so that no two are the same.
    """
    clean = re.sub(r"[^\w.-]", "_", name)[:LONGEST_NAME]
    if clean == name and not re.search(r"-[0-9a-f]{8}$", name):
        return name
    return f"{clean}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def calibration_error(margins: Tensor) -> Tensor:
    """How far confidence lies from accuracy in the mean over pairs, by `CALIBRATION_BINS` bins of confidence. Each pair
    is there twice, once with a tie for right and once for wrong: half a count of each.
    """
    preferences = torch.sigmoid(margins)
    confidence = torch.maximum(preferences, 1 - preferences).repeat(2)
    return binary_calibration_error(confidence, torch.cat([margins > 0, margins >= 0]).long(), CALIBRATION_BINS)


def _right(margins: Tensor) -> Tensor:
    """1 where the preferred answer has the higher score, 1/2 where both have the same: a guess."""
    return torch.heaviside(margins, margins.new_full((), 0.5))


def _clearness(batch: RankingBatch, prompt: Tensor, better: Tensor, worse: Tensor) -> Tensor:
    """(N,) the place in `MARGINS` of each pair."""
    scores = batch.scores[prompt, better], batch.scores[prompt, worse]
    by_score = (scores[0] - scores[1]).clamp(0, 3)
    by_rank = (batch.ranks[prompt, worse] - batch.ranks[prompt, better]).clamp(1, 3) - 1 + len(SCORE_MARGINS)
    return torch.where((scores[0] > 0) & (scores[1] > 0), by_score, by_rank)


def _by_round(right: Tensor, rounds: Tensor) -> dict[str, float]:
    numbers, accuracies, _ = group_means(right[rounds >= 0], rounds[rounds >= 0])
    found = list(zip(numbers.tolist(), accuracies.tolist(), strict=True))[-MOST:]
    metrics = {f"accuracy_round/{number}": accuracy for number, accuracy in found}
    return metrics | ({"accuracy_newest_round": found[-1][1]} if found else {})


def _by_labeler(right: Tensor, labelers: Tensor, known: Mapping[str, int]) -> dict[str, float]:
    names = {number: name for name, number in known.items()}
    groups = zip(*(column.tolist() for column in group_means(right, labelers)), strict=True)
    found = sorted((-count, names[number], accuracy) for number, accuracy, count in groups if number in names)
    return {f"accuracy_labeler/{tag_of(name)}": accuracy for _, name, accuracy in found[:MOST]}


def _by_bin(name: str, right: Tensor, bins: Tensor, names: Sequence[str]) -> dict[str, float]:
    numbers, accuracies, _ = group_means(right, bins)
    return {f"{name}/{names[i]}": value for i, value in zip(numbers.tolist(), accuracies.tolist(), strict=True)}


def _by_length(right: Tensor, longer: Tensor) -> dict[str, float]:
    bins = torch.bucketize(longer, torch.tensor(_LENGTH_EDGES), right=True)
    metrics = _by_bin("accuracy_length", right, bins, LENGTHS)
    for name, those in {"shorter": longer < 0, "longer": longer > 0}.items():
        if those.any():
            metrics[f"accuracy_{name}_preferred"] = float(right[those].mean())
    return metrics
