"""The embedded works: whole, parted once, the words that the scrambles are made of."""

from gpt_modules.data.builtin.shakespeare import frequent_words, load_shakespeare, shakespeare_text
from gpt_modules.data.rows.sources import fingerprint, iter_rows


def test_the_text_is_whole_and_parted_at_a_line():
    text, train, held_out = load_shakespeare(), shakespeare_text("train"), shakespeare_text("validation")
    assert (len(text), len(set(text))) == (5_057_320, 84)
    assert train + held_out == text
    assert train.endswith("\n")
    assert abs(len(held_out) / len(text) - 0.1) < 1e-4
    assert "Friends, Romans, countrymen, lend me your ears" in " ".join(text.split())


def test_it_is_a_source_with_splits_of_its_own():
    for split in ("train", "validation"):
        assert list(iter_rows("shakespeare", split, "pretraining")) == [{"text": shakespeare_text(split)}]
    assert fingerprint("shakespeare", "train") != fingerprint("shakespeare", "validation")


def test_words_are_ordered_by_frequency():
    words = frequent_words()
    assert len(set(words)) == len(words) == 10_000
    assert words[:3] == ("shall", "would", "their")
    assert all(5 <= len(word) <= 15 and word.isascii() and word.islower() for word in words)
