"""Every value that JSON can say is read, and no other, whatever stands around it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_modules.storage.strict_json import DEPTH, Refused, StrictDecoder

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab\"\\é"), inner, max_size=3),
)  # fmt: skip


@given(VALUES, st.booleans())
def test_what_is_written_is_read_and_where_it_ends_is_told(value, escaped):
    text = json.dumps(value, ensure_ascii=escaped)
    assert StrictDecoder().decode(f"[]{text} x", 2) == (value, 2 + len(text))


def test_nesting_ends_at_its_bound():
    assert StrictDecoder().decode("[" * DEPTH + "]" * DEPTH)[1] == 2 * DEPTH
    for depth in (DEPTH + 1, 100_000):
        with pytest.raises(Refused, match=f"more than {DEPTH} objects and lists inside one another"):
            StrictDecoder().decode("[" * depth + "]" * depth)


def test_numbers_are_made_by_those_who_ask():
    assert StrictDecoder(number=lambda written: len(written), whole=lambda written: -1).decode("[1.25, 7]")[0] == [
        4,
        -1,
    ]
    assert StrictDecoder().decode("9" * 300)[0] == int("9" * 300)
    with pytest.raises(Refused, match="too large for a float"):
        StrictDecoder().decode("9" * 309)
