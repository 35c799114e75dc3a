"""Metrics against torchmetrics, closed forms and numbers worked by hand."""

import math

import numpy as np
import pytest
from torchmetrics.functional.text import rouge_score, sacre_bleu_score, squad

from gpt_modules.evaluation.tasks.metrics import bleu, bootstrap, mean, ratio_of, text_scores

SAID = ["The cat sat on the mat.", "a dog, it seems", "", "in 1912 he sailed from here to there", "Bob"]
KNOWN = [
    ["the cat sat on a mat", "a cat was on the mat"],
    ["the dog"],
    ["no answer"],
    ["in 1912, he sailed from there to here today", "he sailed"],
    ["bob!", "Alice"],
]


def test_squad_as_torchmetrics():
    scores = text_scores(["normalized_exact_match", "f1"], SAID, KNOWN)
    preds = [{"prediction_text": text, "id": str(i)} for i, text in enumerate(SAID)]
    target = [
        {"answers": {"answer_start": [0] * len(texts), "text": texts}, "id": str(i)} for i, texts in enumerate(KNOWN)
    ]
    expected = squad(preds, target)
    assert 100 * np.mean(scores["f1"]) == pytest.approx(float(expected["f1"]), abs=1e-4)
    assert 100 * np.mean(scores["normalized_exact_match"]) == pytest.approx(float(expected["exact_match"]))


def test_a_sign_counts_in_an_exact_match():
    scores = text_scores(["exact_match", "normalized_exact_match"], [" -5", "5", "The 5"], [["-5"], ["-5"], ["5"]])
    assert scores["exact_match"] == [1.0, 0.0, 0.0]
    assert scores["normalized_exact_match"] == [1.0, 1.0, 1.0], "which is why arithmetic does not use it"


def test_f1_by_hand():
    assert text_scores(["f1"], ["green big apple"], [["the apple is green"]])["f1"] == [2 * (2 / 3) * (2 / 3) / (4 / 3)]


def test_bleu_as_torchmetrics():
    assert bleu(SAID, KNOWN).value == pytest.approx(100 * float(sacre_bleu_score(SAID, KNOWN)), abs=1e-3)
    assert bleu(["the cat"], [["a dog"]]) == (0.0, None)
    assert bleu(["the cat sat on it"] * 3, [["the cat sat on it"]] * 3) == (pytest.approx(100.0), pytest.approx(0.0))


def test_rouge_as_torchmetrics():
    scores = text_scores(["rouge"], SAID, KNOWN)
    keys = ("rouge1", "rouge2", "rougeL")
    expected = rouge_score(SAID, KNOWN, accumulate="best", rouge_keys=keys)
    for key in keys:
        assert np.mean(scores[key]) == pytest.approx(float(expected[f"{key}_fmeasure"]), abs=1e-5)
    assert np.mean(scores["rouge_average"]) == pytest.approx(np.mean([scores[key] for key in keys]))


def test_the_error_of_right_and_wrong_answers():
    p, n = 0.3, 50
    found = mean([True] * 15 + [False] * 35)
    assert found == (p, pytest.approx(math.sqrt(p * (1 - p) / (n - 1))))
    assert mean([1.0]) == (1.0, None)


def test_the_bootstrap_of_a_mean_is_its_standard_error():
    """1,000 resamples know a standard error to about 1 / sqrt(2000), that is 2 %."""
    values = np.random.default_rng(1).normal(size=200)
    statistics = np.stack([values, np.ones(200)], axis=1)
    value, error = bootstrap(statistics, ratio_of(lambda means: means))
    assert value == pytest.approx(values.mean())
    assert error == pytest.approx(values.std() / math.sqrt(200), rel=0.12)
    assert bootstrap(statistics, ratio_of(lambda means: means)) == (value, error), "seeded"
    assert bootstrap(statistics, ratio_of(lambda means: means), seed=1).standard_error != error
    assert bootstrap(statistics * [400, 1], ratio_of(lambda means: np.exp(means + 400))).standard_error is None
    assert bootstrap(statistics[:1], ratio_of(np.exp)) == (pytest.approx(math.exp(values[0])), None)


@pytest.mark.parametrize("reference", ["A", "the", ".", "The!"])
def test_an_answer_that_says_nothing_does_not_agree_with_a_reference_of_articles(reference):
    """SQuAD's normalisation leaves nothing of it."""
    scores = text_scores(["normalized_exact_match", "f1"], ["", reference, "cat"], [[reference]] * 3)
    assert scores == {"normalized_exact_match": [0.0, 1.0, 0.0], "f1": [0.0, 1.0, 0.0]}
