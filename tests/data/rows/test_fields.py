import pytest

from gpt_modules.data.rows.fields import FieldError, describe, items_of, mapping_of, text_of, texts_of


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "null"),
        (" ", "empty text"),
        ("a" * 50, "the text " + repr("a" * 40) + "..."),
        (True, "the truth value True"),
        (2.5, "the number 2.5"),
        ([1, 2], "a list of 2"),
        ({}, "an object"),
        (b"", "a bytes"),
    ],
)
def test_values_in_words(value, words):
    assert describe(value) == words


@pytest.mark.parametrize(
    ("read", "line"),
    [
        (lambda: mapping_of([1]), "row: found a list of 1, expected an object with named fields"),
        (lambda: text_of({"a": 1}, "b"), "b: found no such field among ['a'], expected text"),
        (lambda: text_of({"b": "\ud800"}, "b"), "b: found half of a surrogate pair, expected text that UTF-8 can hold"),
        (lambda: items_of({"b": []}, "b"), "b: found an empty list, expected at least one item"),
        (lambda: texts_of({"b": ["a", ""]}, "b"), "b[1]: found empty text, expected non-empty text"),
    ],
)
def test_what_does_not_fit_gets_its_line(read, line):
    with pytest.raises(FieldError) as told:
        read()
    assert str(told.value) == line
