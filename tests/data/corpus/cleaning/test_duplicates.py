import random
import sys

import pytest

from gpt_modules.data.corpus.cleaning.duplicates import GRAM, NearDuplicates, Signer
from gpt_modules.data.corpus.cleaning.ngrams import split_words
from gpt_modules.errors import UserError

pytest.importorskip("datasketch")


def jaccard(one, two):
    """The slow way, on the words themselves."""
    sets = []
    for text in (one, two):
        words = text.split()
        sets.append({tuple(words[i : i + GRAM]) for i in range(len(words) - GRAM + 1)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def add_all(texts, threshold):
    sign, seen = Signer(), NearDuplicates(threshold)
    return [seen.add(sign(split_words(text).hashes)) for text in texts]


def variants(rng, count):
    """Texts of 400 words of which a few, one in a hundred to one in five, are replaced."""
    base = [f"w{rng.randrange(5000)}" for _ in range(400)]
    texts = [base]
    for _ in range(count):
        rate = rng.choice([0.002, 0.005, 0.01, 0.05, 0.1, 0.2])
        texts.append([f"x{rng.randrange(10**9)}" if rng.random() < rate else word for word in base])
    return [" ".join(words) for words in texts]


def test_what_is_removed_is_what_brute_force_removes():
    rng, clear = random.Random(0), 0
    for _ in range(6):
        texts = variants(rng, 12)
        for number, (text, found) in enumerate(zip(texts, add_all(texts, 0.8), strict=True)):
            if number == 0:
                assert found is None
                continue
            true = jaccard(texts[0], text)
            if found is not None:
                exact = jaccard(texts[found.of], text)
                assert abs(found.similarity - exact) < 0.2  # five standard errors
                assert exact > 0.6
            if true > 0.97 or true < 0.55:  # far from the threshold the answer is certain
                clear += 1
                assert (found is not None) == (true > 0.97)
    assert clear > 20


def test_the_first_stays_and_case_and_marks_do_not_count():
    text = "One two three four five six seven eight nine ten."
    found = add_all([text, "something else " * 9, text.upper().replace(".", "!"), text], 0.8)
    assert found[:2] == [None, None]
    assert found[2:] == [(2, 0, 1.0), (3, 0, 1.0)]


def test_texts_too_short_for_a_run_are_compared_whole():
    found = add_all(["a b", "a c", "A, b!", "a b c", "a c"], 0.8)
    assert found == [None, None, (2, 0, 1.0), None, (4, 1, 1.0)]


def test_wrong_thresholds_and_a_missing_library(monkeypatch):
    for threshold in (0.0, 1.5, float("nan")):
        with pytest.raises(UserError, match="near-duplicates: found"):
            NearDuplicates(threshold)
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(UserError, match=r"pip install 'gpt-modules\[prepare\]'"):
        Signer()
