"""Zero-shot probes: tasks that a language model does without being taught them, by the probabilities it gives to text.

Source: Radford et al. 2018, section 5, "Zero-shot Behaviors".

cola      Is a sentence acceptable? Its mean token log-probability, against a threshold. The paper does not say where
          the threshold comes from; here the sentences are parted in two by hash, and each half is judged by the
          threshold that is best (by Matthews' correlation) on the other. The area under the ROC curve needs none.
sst2      Is a sentence positive? "very" is added to it, and of the words "positive" and "negative" the more probable
          one is the answer.
choice    Which answer fits (RACE, StoryCloze)? The one with the highest mean token log-probability given the text.
winograd  What does a word refer to? Each candidate is put in its place, and what follows is scored: its mean token
          log-probability given everything up to and with the candidate.

Every text follows an end token, as documents do in pretraining.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.classification import binary_auroc

from gpt_modules.backbone import GPT
from gpt_modules.data.rows.fields import FieldError, describe
from gpt_modules.data.rows.files import file_rows, find_files
from gpt_modules.data.rows.labelled import class_number
from gpt_modules.data.rows.schemas import check_row
from gpt_modules.data.splits import split_of
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError
from gpt_modules.evaluation.tasks.prompts import encode_pairs
from gpt_modules.evaluation.tasks.scoring import Row, Score, continuation_logprobs

log = logging.getLogger(__name__)

ProbeKind = Literal["cola", "sst2", "choice", "winograd"]


@dataclass(frozen=True)
class Probe:
    """One task and the local file of its rows.

    Raises `UserError`, one line naming the field, for values that no probe can have.
    """

    kind: ProbeKind
    file: str
    """A file, folder or glob: .jsonl, .json, .csv or .parquet."""
    name: str | None = None
    """In the metric's name; by default the kind."""
    text: str | list[str] = "text"
    """Column of the text; several columns are joined with a space (RACE: article, question)."""
    choices: str | list[str] = "choices"
    """choice, winograd: column that holds the list of answers, or one column an answer."""
    label: str = "label"
    """cola: 1 is acceptable. sst2: 1 is positive. Others: the number of the right answer, from 0."""
    labels: list[str] | None = None
    """What stands in the label column in place of 0, 1, ...: [A, B, C, D] for RACE, ["1", "2"] for StoryCloze."""
    placeholder: str = "_"
    """winograd: what stands, once, where the candidates go."""
    limit: int | None = None
    """Read the first so many rows only."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(ProbeKind):
            raise UserError(f"probe: kind: found {self.kind!r}, expected one of {', '.join(get_args(ProbeKind))}")
        if not isinstance(self.choices, str) and len(self.choices) < 2:
            raise UserError(f"probe: choices: found {self.choices}, expected one column or at least 2")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"probe: limit: found {self.limit}, expected at least 1")
        if not self.placeholder:
            raise UserError("probe: placeholder: found empty text, expected what stands for the candidates")

    @property
    def metric(self) -> str:
        """The first part of its metrics' names."""
        return f"probe/{self.name or self.kind}"


class Item(NamedTuple):
    """A row of a probe: one (context, continuation) an answer, which is right, and for cola the half it belongs to."""

    answers: list[Row]
    label: int
    half: bool


def read_items(probe: Probe, tokenizer: Tokenizer, n_positions: int) -> list[Item]:
    """The rows of a probe's file as tokens.

    Raises:
        UserError: No row, or one that does not fit, is too long for the model or says nothing: with file, row and
            column.
    """
    check = partial(_check, probe=probe, tokenizer=tokenizer, n_positions=n_positions)
    rows = (row for path in find_files(probe.file) for row in file_rows(path, "sft", check))
    items = [row["item"] for row in islice(rows, probe.limit)]
    if not items:
        raise UserError(f"{probe.file}: found no row, expected at least one")
    cut = sum(any(sum(map(len, row)) > n_positions + 1 for row in item.answers) for item in items)
    if cut:
        log.warning("%s: %d of %d rows lose the beginning of their context to n_positions", probe.file, cut, len(items))
    if probe.kind == "cola" and len({item.label for item in items}) < 2:
        raise UserError(f"{probe.file}: {probe.label}: found only {items[0].label}, expected both 0 and 1")
    return items


def run_probe(probe: Probe, items: list[Item], model: GPT) -> dict[str, float]:
    """Metric name -> value: accuracy, or for cola Matthews' correlation and the area under the ROC curve."""
    scores = iter(continuation_logprobs(model, [answer for item in items for answer in item.answers]))
    values = [[_value(probe, score) for score in islice(scores, len(item.answers))] for item in items]
    labels = np.array([item.label for item in items])
    if probe.kind == "cola":
        halves = np.array([item.half for item in items])
        found = acceptability(np.array(values)[:, 0], labels == 1, halves)
        return {f"{probe.metric}_{name}": value for name, value in found.items()}
    answers = np.array([np.argmax(value) for value in values])
    return {f"{probe.metric}_accuracy": float((answers == labels).mean())}


def acceptability(
    scores: NDArray[np.float64], labels: NDArray[np.bool_], halves: NDArray[np.bool_]
) -> dict[str, float]:
    """`matthews` of cross-fitted decisions and `auroc` of scores (N,) in nats, at most 0."""
    accepted = np.empty(len(scores), dtype=bool)
    for half in (False, True):
        judged, other = halves == half, halves != half
        accepted[judged] = scores[judged] > best_threshold(scores[other], labels[other])
    # torchmetrics squashes scores that are not between 0 and 1.
    auroc = binary_auroc(torch.from_numpy(scores).exp(), torch.from_numpy(labels).long())
    matthews = _matthews(accepted.astype(np.float64), labels, np.array([0.5]))
    return {"matthews": float(matthews[0]), "auroc": float(auroc)}


def best_threshold(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> float:
    """The threshold between two neighbouring scores above which accepting gives the best Matthews correlation.

    -inf, accept all, where none correlates.
    """
    ranked = np.unique(scores)
    cuts = np.concatenate([[-np.inf], (ranked[:-1] + ranked[1:]) / 2])
    return float(cuts[np.argmax(_matthews(scores, labels, cuts))])


def _matthews(scores: NDArray[np.float64], labels: NDArray[np.bool_], cuts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Matthews' correlation of labels with what is above each cut; exactly 0 where all or none is (torchmetrics: nearly
    0).
    """
    fn, tn = (np.searchsorted(np.sort(scores[side]), cuts, "right").astype(np.float64) for side in (labels, ~labels))
    tp, fp = labels.sum() - fn, (~labels).sum() - tn
    spread = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return np.asarray((tp * tn - fp * fn) / np.where(spread > 0, spread, 1.0))


def _value(probe: Probe, score: Score) -> float:
    """sst2 compares two words, each whole. Elsewhere answers differ in length and are compared by the mean token."""
    return score.logprob if probe.kind == "sst2" else score.mean


def _check(record: object, probe: Probe, tokenizer: Tokenizer, n_positions: int) -> dict[str, Any]:
    """{"item": Item} of a record.

    Raises:
        FieldError: It does not fit.
    """
    text = " ".join(_text(record, column) for column in _columns(probe.text))
    assert isinstance(record, Mapping)  # a text was found in it
    pairs = list(_pairs(probe, text, record))
    label = _label(record, probe, 2 if probe.kind == "cola" else len(pairs))
    answers = encode_pairs(tokenizer, pairs)
    for (_, after), (_, scored) in zip(pairs, answers, strict=True):
        if not 0 < len(scored) <= n_positions:
            column = "+".join(_columns(probe.choices if probe.kind == "choice" else probe.text))
            found = f"{len(scored)} tokens to score in {describe(after.strip())}"
            raise FieldError(column, found, f"1 to n_positions = {n_positions}")
    # Salted: texts that were held out by their plain hash would otherwise all be of one half.
    return {"item": Item(answers, label, split_of(f"half {text}", 0.5) == "train")}


def _pairs(probe: Probe, text: str, record: Mapping[Any, Any]) -> Iterator[tuple[str, str]]:
    """(context, continuation) of each answer, in the order of the labels."""
    if probe.kind == "cola":
        yield "", text
    elif probe.kind == "sst2":
        yield from ((f"{text} very", word) for word in (" negative", " positive"))
    elif probe.kind == "choice":
        yield from ((text, f" {choice}") for choice in _choices(probe, record))
    else:
        before, *rest = text.split(probe.placeholder)
        if len(rest) != 1 or not rest[0].strip():
            found = f"{probe.placeholder!r} {len(rest)} times in {describe(text)}"
            raise FieldError("+".join(_columns(probe.text)), found, "it once, and text after it")
        yield from ((before + choice, rest[0]) for choice in _choices(probe, record))


def _choices(probe: Probe, record: Mapping[Any, Any]) -> list[str]:
    if not isinstance(probe.choices, str):
        return [_text(record, column) for column in probe.choices]
    given = _field(record, probe.choices, "a list of at least 2 texts")
    if not isinstance(given, list) or len(given) < 2:
        raise FieldError(probe.choices, describe(given), "a list of at least 2 texts")
    named = {f"{probe.choices}[{i}]": choice for i, choice in enumerate(given)}
    return [_text(named, name) for name in named]


def _label(record: Mapping[Any, Any], probe: Probe, count: int) -> int:
    value = _field(record, probe.label, "the right answer")
    number = class_number(value, probe.labels, count)
    if number is None:
        named = f" or one of {', '.join(probe.labels)}" if probe.labels else ""
        raise FieldError(probe.label, describe(value), f"0 to {count - 1}{named}")
    return number


def _field(record: Mapping[Any, Any], column: str, expected: str) -> Any:
    if column not in record:
        raise FieldError(column, f"no such field among {sorted(map(str, record))[:8]}", expected)
    return record[column]


def _text(record: object, column: str) -> str:
    return str(check_row(record, "pretraining", text_field=column)["text"]).strip()


def _columns(names: str | list[str]) -> list[str]:
    return [names] if isinstance(names, str) else names
