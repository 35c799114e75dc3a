"""Baselines against distributions worked by hand."""

import math
import random

import numpy as np
import pytest

from gpt_modules.data.builtin.reviews import load_reviews
from gpt_modules.evaluation.baselines import BagOfWords, KneserNey, NaiveBayes


def test_kneser_ney_against_a_literal():
    """Stream a b a b c a. Bigrams: ab twice; ba, bc, ca once: n1 = 3, n2 = 1, Y = 3/5, D1 = 1 - 2(3/5)(1/3), D2 = 2.
    Continuation counts: a after b and c 2, b 1, c 1: n1 = 2, n2 = 1, Y = 1/2, D1 = 0.5, D2 = 2; 3 of 4 go to the
    uniform 1/3.
    """
    model = KneserNey(np.array([0, 1, 0, 1, 2, 0]), vocab_size=3, order=2)
    assert [model.probability((k,)) for k in range(3)] == pytest.approx([0.25, 0.375, 0.375])
    assert [model.probability((0, k)) for k in range(3)] == pytest.approx([0.25, 0.375, 0.375]), (
        "ab is discounted whole"
    )
    assert [model.probability((1, k)) for k in range(3)] == pytest.approx([0.35, 0.225, 0.425])
    assert [model.probability((2, k)) for k in range(3)] == pytest.approx([0.4 + 0.6 * 0.25, 0.6 * 0.375, 0.6 * 0.375])


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_sum_to_one(order):
    """After contexts that were seen, and after some that were not."""
    rng = np.random.default_rng(0)
    stream = rng.zipf(1.5, 3000) % 20
    model = KneserNey(stream, vocab_size=25, order=order)
    for _ in range(60):
        start = int(rng.integers(len(stream) - order))
        seen, random_context = (
            tuple(stream[start : start + order - 1].tolist()),
            tuple(rng.integers(0, 25, order - 1).tolist()),
        )
        for context in (seen, random_context):
            probabilities = [model.probability((*context, k)) for k in range(25)]
            assert sum(probabilities) == pytest.approx(1.0)
            assert min(probabilities) > 0


@pytest.mark.parametrize("stream", [[], [0], [0, 1]])
def test_without_a_whole_context_to_learn_from_all_tokens_are_alike(stream):
    model = KneserNey(np.array(stream, dtype=np.uint16), vocab_size=5, order=3)
    assert model.perplexity(np.arange(5)) == pytest.approx(5.0)


def test_the_perplexity_of_noise_is_the_vocabulary_and_of_a_cycle_is_one():
    rng = np.random.default_rng(0)
    noise, held_out = rng.integers(0, 8, 20_000), rng.integers(0, 8, 2_000)
    assert KneserNey(noise, 8, order=2).perplexity(held_out) == pytest.approx(8.0, rel=0.05)
    cycle = np.tile(np.arange(8), 500)
    assert KneserNey(cycle, 8, order=3).perplexity(cycle[:800]) < 1.1


def test_perplexity_is_the_mean_over_tokens_with_a_whole_context():
    model = KneserNey(np.array([0, 1, 0, 1, 2, 0]), vocab_size=3, order=2)
    expected = math.exp(-(math.log(0.375) + math.log(0.425)) / 2)
    assert model.perplexity(np.array([0, 1, 2])) == pytest.approx(expected)


def pairs(count, seed):
    rng = random.Random(seed)
    words = lambda kind: " ".join(rng.choices([*kind, "the", "film", "is", "so"], k=6))  # noqa: E731
    return [(words(["good", "great"]) + " good", words(["bad", "poor"]) + " bad") for _ in range(count)]


def test_bag_of_words_separates_the_obvious():
    model = BagOfWords(pairs(50, 0))
    assert model.accuracy(pairs(50, 1)) == 1.0
    assert model.accuracy([(worse, better) for better, worse in pairs(50, 1)]) == 0.0


def test_words_that_say_nothing_are_a_tie():
    model = BagOfWords(pairs(50, 0))
    assert model.accuracy([("unheard", "unseen")]) == 0.5


def test_naive_bayes_against_a_literal():
    """Class 0 has "good film", class 1 "bad film" and "bad": V = 5 features (good, bad, film, good film, bad film).
    Class 0 counts 3 features, class 1 has 4. P(0 | film) is as 1/3 · 2/8 to 2/3 · 2/9; "good good" as 1/3 · (2/8)² to
    2/3 · (1/9)².
    """
    model = NaiveBayes(["Good film", "bad film", "BAD"], [0, 1, 1], 2)
    assert [math.exp(prior) for prior in model.priors] == pytest.approx([1 / 3, 2 / 3])
    assert [math.exp(logs) for logs in model.evidence["film"]] == pytest.approx([2 / 8, 2 / 9])
    assert [math.exp(logs) for logs in model.evidence["good film"]] == pytest.approx([2 / 8, 1 / 9])
    assert [math.exp(logs) for logs in model.evidence["bad"]] == pytest.approx([1 / 8, 3 / 9])
    assert model.predict(["film", "good", "good good", "unheard of", ""]) == [1, 0, 0, 1, 1]
    assert model.accuracy(["film", "good"], [0, 0]) == 0.5


def test_naive_bayes_reads_word_order_and_leaves_empty_classes_out():
    texts = ["not good but bad", "not bad but good"] * 5
    model = NaiveBayes(texts, [0, 2] * 5, 4)
    assert model.predict(["not bad", "not good"]) == [2, 0]
    assert set(model.predict(["the", "good", "bad", "but"])) <= {0, 2}


def test_naive_bayes_on_the_embedded_ratings():
    """0.8199 of the 1,027 held-out film sentences that people agree about: what a fine-tuned model has to beat."""
    rated = [r for r in load_reviews() if r.domain == "film" and abs(r.rating) >= 0.5]
    train, held_out = ([r for r in rated if r.split == split] for split in ("train", "validation"))
    sides = [([r.text for r in rows], [int(r.rating > 0) for r in rows]) for rows in (train, held_out)]
    assert len(held_out) == 1027
    assert NaiveBayes(*sides[0], 2).accuracy(*sides[1]) == pytest.approx(842 / 1027)


def test_scores_add_up_over_words():
    model = BagOfWords(pairs(50, 0))
    good, bad, both, nothing = model.scores(["good", "bad", "good bad", "unheard"]).tolist()
    assert good > 0 > bad
    assert both == pytest.approx(good + bad)
    assert nothing == 0.0
