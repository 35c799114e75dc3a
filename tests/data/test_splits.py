"""Splits are a function of a text as a reader sees it."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_modules.data.splits import hash_fraction, hold_out, normalise, split_of
from gpt_modules.errors import UserError


@pytest.mark.parametrize(
    "twin",
    [
        "CAFÉ  au\tlait ",
        "cafe\u0301 au lait",
        "café\u00a0au\u2003lait",
        "ca\u00adfé au la\u200bit\ufeff",
        "\u202aｃａｆé au lait\u202c",
        "café au lait\u034f",
        "cafe\u00ad\u0301 au lait",
        "café au lait\ufe0f",
    ],
)
def test_texts_that_look_alike_are_one(twin):
    assert normalise(twin) == "café au lait"
    assert hash_fraction(twin) == hash_fraction("café au lait")


def test_other_texts_are_others():
    assert len({normalise(text) for text in ("cafe au lait", "café, au lait", "café au lait", "café aulait")}) == 4
    assert normalise("STRASSE") == normalise("Straße")


@settings(deadline=None, max_examples=300)
@given(st.text())
def test_what_is_normal_stays(text):
    assert normalise(normalise(text)) == normalise(text)


@settings(deadline=None)
@given(st.text(st.characters(max_codepoint=127)))
def test_plain_text_is_normalised_as_ever(text):
    assert normalise(text) == " ".join(text.lower().split())


def test_the_hash_is_what_it_was():
    """Splits of earlier versions, and every number measured on them, stand."""
    assert hash_fraction("The quick brown  fox") == int.from_bytes(bytes.fromhex("9ecb36561341d1"), "big") / 2**56


def test_about_a_fraction_of_all_texts_validates():
    for fraction in (0.05, 0.5):
        share = sum(split_of(f"text {i}", fraction) == "validation" for i in range(20_000)) / 20_000
        assert abs(share - fraction) < 0.01


def test_a_side_that_is_too_small_is_refused():
    items = [f"text {i}" for i in range(6)]
    places = sorted(map(hash_fraction, items))
    for least in (1, 2, 3):
        with pytest.raises(UserError) as caught:
            hold_out(items, str, 0.0, "a.jsonl: different texts", least)
        low, high = re.search(r"found 0 of 6 .*, expected a fraction of (\S+) to (\S+), or", str(caught.value)).groups()
        assert places[least - 1] < float(low) <= float(high) <= places[-least]
        for fraction in (float(low), float(high)):
            assert min(map(len, hold_out(items, str, fraction, "x", least))) >= least
