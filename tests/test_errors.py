"""A user's mistake is one line."""

import pytest

from gpt_modules.errors import UserError, expect


def test_what_fits_says_nothing():
    expect(True, "batch_size", 1, "at least 1")


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (0, "batch_size: found 0, expected at least 1"),
        ("two\nlines", r"batch_size: found 'two\nlines', expected at least 1"),
        (None, "batch_size: found None, expected at least 1"),
    ],
)
def test_what_does_not_is_named_in_one_line(found, line):
    with pytest.raises(UserError) as caught:
        expect(False, "batch_size", found, "at least 1")
    assert str(caught.value) == line
