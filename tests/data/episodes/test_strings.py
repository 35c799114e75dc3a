"""Strings of letters: uniform, different where there are enough, and lossless between letters and numbers."""

from collections import Counter

import numpy as np
import pytest

from gpt_modules.data.episodes.strings import draw_strings, parse, spell


def test_letters_and_numbers_are_one_another():
    assert spell(np.array([[0, 1, 25], [2, 2, 0]])) == ["abz", "cca"]
    assert parse(["abz", "cca"]).tolist() == [[0, 1, 25], [2, 2, 0]]


@pytest.mark.parametrize(("symbols", "length", "count"), [(2, 3, 8), (5, 2, 24), (26, 20, 100)])
def test_strings_differ_where_there_are_enough(symbols, length, count):
    strings = draw_strings(np.random.default_rng(0), symbols, length, count)
    assert len(strings) == len(set(strings)) == count
    assert {len(string) for string in strings} == {length}
    assert set("".join(strings)) == {chr(ord("a") + i) for i in range(symbols)}


@pytest.mark.parametrize(("symbols", "length"), [(8, 1), (2, 2)])
def test_single_letters_and_too_few_strings_are_drawn_with_repetition(symbols, length):
    strings = draw_strings(np.random.default_rng(0), symbols, length, 40)
    assert len(strings) == 40
    assert len(set(strings)) == symbols**length


def test_draws_are_uniform():
    generator = np.random.default_rng(0)
    counts = Counter(string for _ in range(2000) for string in draw_strings(generator, 3, 2, 3))
    assert len(counts) == 9
    assert all(550 < count < 790 for count in counts.values()), "6000 / 9 = 667, 22 a standard deviation"
