"""Baselines against distributions worked by hand."""

import math
import random

import numpy as np
import pytest

from gpt_modules.evaluation.baselines import BagOfWords, KneserNey


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
