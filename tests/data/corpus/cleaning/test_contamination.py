import json
import unicodedata

import numpy as np
import pytest

from gpt_modules.data.corpus.cleaning.contamination import (
    clean_pieces,
    colliding_grams,
    collisions,
    distinct_grams,
    texts_of_tests,
)
from gpt_modules.data.corpus.cleaning.ngrams import split_words

TEST = "the quick brown fox jumps over the lazy dog while thirteen words are counted here today"  # 16 words, 4 runs


def filler(name, length):
    """Text of words that are in no test set."""
    return "".join(f"{name}{i} " for i in range(length))[:length]


@pytest.fixture(scope="module")
def grams():
    return distinct_grams([TEST, "too short"])[0]


def test_runs_of_thirteen_words():
    grams, short = distinct_grams([TEST, TEST.upper(), "too short", "one two " * 6])
    assert len(grams) == 4
    assert short == 2
    assert (np.diff(grams.astype(object)) > 0).all()


def test_a_collision_is_cut_out_with_what_surrounds_it(grams):
    before, after = filler("a", 700), filler("b", 900)
    text = f"{before}. The QUICK, brown fox jumps over the lazy dog - while thirteen words ARE; {after}"
    spans = collisions(text, grams)
    assert [text[start:end] for start, end in spans.tolist()] == [text[702 : text.index(" " + after)]]
    assert clean_pieces(text, spans) == [text[:502], after[199:]]


def test_a_run_is_found_however_its_letters_are_composed():
    """The same text to a reader, from a system that writes its accents apart."""
    text = "Le café est très agréable à midi où la forêt naît près de l'été"
    composed, apart = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    grams, _ = distinct_grams([composed])
    assert [len(collisions(written, grams)) for written in (composed, apart, f"\u200b{apart}")] == [2, 2, 2]


def test_twelve_words_are_no_collision(grams):
    assert len(collisions(" ".join(TEST.split()[:12]) + " otherwise", grams)) == 0


def test_short_pieces_are_dropped_and_clean_texts_are_not(grams):
    text = f"{filler('a', 398)} {TEST} {filler('b', 450)}"
    pieces = clean_pieces(text, collisions(text, grams))
    assert pieces == [text[-251:]]  # 450 - 200, and the space before them
    assert clean_pieces("short", collisions("short", grams)) == ["short"]
    assert clean_pieces(TEST, collisions(TEST, grams)) == []


@pytest.mark.parametrize(("hits", "kept"), [(1, 2), (9, 10), (10, 0)])
def test_a_document_in_too_many_pieces_is_dropped(grams, hits, kept):
    text = f" {TEST} ".join(filler(f"f{i}x", 800) for i in range(hits + 1))
    assert len(clean_pieces(text, collisions(text, grams))) == kept


def test_documents_count_once_for_a_run(grams):
    found = colliding_grams(split_words(f"{TEST} and {TEST}").hashes, grams)
    assert found.tolist() == grams.tolist()
    assert len(colliding_grams(split_words("nothing of it").hashes, grams)) == 0
    assert len(colliding_grams(split_words(TEST).hashes, grams[:0])) == 0


def test_every_text_of_a_test_file_counts(tmp_path):
    rows = [{"query": "a", "choices": ["b", "c"], "gold": 1, "meta": {"more": "d"}}]
    (tmp_path / "t.jsonl").write_text(json.dumps(rows[0]) + "\n")
    (tmp_path / "t.txt").write_text("e\nf")
    (tmp_path / "u.TXT").write_text("g")
    assert sorted(texts_of_tests([str(tmp_path)], tmp_path / "cache")) == ["a", "b", "c", "d", "e\nf", "g"]
