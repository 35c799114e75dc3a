"""Accuracy of parts of the held-out pairs, against a naive loop; and what has no pair is not there."""

import math
import random
import re

import numpy as np
import pytest
import torch

from gpt_modules.data.collate import RankedAnswers, collate_rankings
from gpt_modules.training.preference_metrics import LENGTHS, MARGINS, PreferenceMetrics, calibration_error, tag_of

NAMES = {"ann": 0, "ben": 1}


def votes(count, seed=0, **fixed):
    """Random votes of 2 to 4 answers, and a score of each answer."""
    rng, rows, scores = random.Random(seed), [], []
    for _ in range(count):
        size = rng.randint(2, 4)
        answers = [np.arange(rng.choice([1, 2, 3, 5, 8, 30, 120])) for _ in range(size)]
        given = [rng.choice([0, 1, 2, 3, 5, 7]) for _ in range(size)]
        told = {"labeler": rng.choice([-1, 0, 0, 1]), "round": rng.choice([-1, 1, 2, 7]), **fixed}
        rows.append(RankedAnswers(answers, [rng.randint(1, size) for _ in answers], given, **told))
        scores.append([rng.gauss(0, 1) for _ in answers])
    return rows, scores


def measured(rows, scores, size=3, labelers=NAMES):
    metrics = PreferenceMetrics()
    for first in range(0, len(rows), size):
        width = max(map(len, scores[first : first + size]))
        padded = [row + [math.nan] * (width - len(row)) for row in scores[first : first + size]]
        metrics.add(collate_rankings(rows[first : first + size]), torch.tensor(padded, dtype=torch.float64))
    return metrics.take(labelers)


def between(value, names, edges):
    """The bin whose bounds, both among its values, hold the value."""
    return next(name for name, (low, high) in zip(names, edges, strict=True) if low <= value <= high)


def length_bin(difference):
    bounds = [(64, 9999), (16, 63), (4, 15), (1, 3), (0, 0)]
    name = between(abs(difference), ["64_or_more", "16_to_63", "4_to_15", "1_to_3", "same"], bounds)
    return name if name == "same" else f"{'longer' if difference > 0 else 'shorter'}_{name}"


def margin_bin(scores, ranks):
    if all(scores):
        return between(scores[0] - scores[1], MARGINS[:4], [(-9, 0), (1, 1), (2, 2), (3, 9)])
    return between(ranks[1] - ranks[0], MARGINS[4:], [(1, 1), (2, 2), (3, 9)])


def naive(rows, scores):
    """One pair at a time."""
    right = {}
    newest = max(row.round for row in rows)
    for row, found in zip(rows, scores, strict=True):
        for i, rank in enumerate(row.ranks):
            for j, other in enumerate(row.ranks):
                if rank >= other:
                    continue
                longer = len(row.answers[i]) - len(row.answers[j])
                names = [f"accuracy_margin/{margin_bin((row.scores[i], row.scores[j]), (rank, other))}"]
                names += [f"accuracy_length/{length_bin(longer)}"]
                names += [f"accuracy_{'longer' if longer > 0 else 'shorter'}_preferred"] * (longer != 0)
                names += [f"accuracy_round/{row.round}"] * (row.round >= 0)
                names += ["accuracy_newest_round"] * (row.round == newest)
                names += [f"accuracy_labeler/{name}" for name, number in NAMES.items() if number == row.labeler]
                for name in names:
                    right.setdefault(name, []).append(found[i] > found[j])
    return {name: sum(these) / len(these) for name, these in right.items()}


def test_against_a_naive_loop():
    rows, scores = votes(200)
    metrics = measured(rows, scores).metrics
    correlation = metrics.pop("length_correlation")
    assert metrics == pytest.approx(naive(rows, scores), abs=1e-12)
    assert {name.partition("/")[2] for name in metrics if name.startswith("accuracy_margin/")} == set(MARGINS)
    assert {name.partition("/")[2] for name in metrics if name.startswith("accuracy_length/")} == set(LENGTHS)
    away = [
        (score - np.mean(found), len(answer) - np.mean([len(other) for other in row.answers]))
        for row, found in zip(rows, scores, strict=True)
        for score, answer in zip(found, row.answers, strict=True)
    ]
    assert correlation == pytest.approx(np.corrcoef(np.array(away).T)[0, 1])


def test_batches_and_an_empty_one_change_nothing():
    rows, scores = votes(20)
    assert measured(rows, scores, 7).metrics == pytest.approx(measured(rows, scores, 1).metrics)
    metrics = PreferenceMetrics()
    metrics.add(collate_rankings([]), torch.zeros(0, 1))
    losses, margins, found = metrics.take(NAMES)
    assert (len(losses), len(margins), found) == (0, 0, {})


def test_what_nobody_said_has_no_metric():
    rows = [RankedAnswers([np.arange(3), np.arange(3)], [1, 2])]
    assert measured(rows, [[1.0, 0.0]]).metrics == {"accuracy_margin/rank_1": 1.0, "accuracy_length/same": 1.0}
    shorter = [RankedAnswers([np.arange(3), np.arange(4)], [1, 2], (), 0, 1)]  # of a labeler whom no table names
    alike = measured(shorter, [[0.1, 0.1]], labelers={}).metrics
    assert set(alike) == {
        *("accuracy_margin/rank_1", "accuracy_length/shorter_1_to_3", "accuracy_shorter_preferred"),
        *("accuracy_round/1", "accuracy_newest_round"),
    }
    assert set(alike.values()) == {0.5}, "a model that prefers nothing guesses"


def test_a_score_of_one_answer_alone_is_no_difference():
    rows = [RankedAnswers([np.arange(3), np.arange(3)], [1, 3], [7, 0])]
    assert "accuracy_margin/rank_2" in measured(rows, [[1.0, 0.0]]).metrics


def test_the_curves_of_a_kind_are_bounded():
    """The newest rounds, and the labelers with the most pairs."""
    rows, scores = [], []
    for number in range(30):
        for _ in range(1 + number // 10):
            rows.append(RankedAnswers([np.arange(3), np.arange(4)], [1, 2], (), number, number))
            scores.append([float(number % 2), 0.5])
    found = measured(rows, scores, labelers={f"l{number:02}": number for number in range(30)}).metrics
    rounds = {name: value for name, value in found.items() if name.startswith("accuracy_round/")}
    assert rounds == {f"accuracy_round/{number}": number % 2 for number in range(10, 30)}
    assert found["accuracy_newest_round"] == 1.0
    labelers = {name: value for name, value in found.items() if name.startswith("accuracy_labeler/")}
    assert labelers == {f"accuracy_labeler/l{number:02}": number % 2 for number in range(10, 30)}


def test_no_two_names_have_one_tag():
    assert [tag_of(name) for name in ("ann", "Ann", "größer", "a.b-c_d")] == ["ann", "Ann", "größer", "a.b-c_d"]
    names = ["a b", "a/b", "a_b", "a:b", "a\nb", "x" * 60, "x" * 61, "x" * 1000, "-", "_"]
    names += [tag_of(name) for name in names]  # as a hostile labeler would be called
    tags = [tag_of(name) for name in dict.fromkeys(names)]
    assert len(set(tags)) == len(tags)
    assert all(re.fullmatch(r"[\w.-]{1,70}", tag) for tag in tags)


def test_a_pair_whose_answers_score_the_same_is_half_right():
    """A policy that still is its reference is right as often as a coin, and says so: no error of its calibration. Of
    three pairs that are certain, one is wrong, which is a quarter with a tie beside them.
    """
    rows = [RankedAnswers([np.arange(2), np.arange(3)], [1, 2], (), 0, 1)] * 4
    certain = [[9e9, 0.0], [0.0, 9e9], [9e9, 0.0], [0.0, 0.0]]
    for scores, accuracy, error in (([[0.0, 0.0]] * 4, 0.5, 0.0), (certain, 0.625, 0.25)):
        found = measured(rows, scores)
        assert found.metrics["accuracy_round/1"] == accuracy
        assert calibration_error(found.margins).item() == pytest.approx(error)
