"""GPT-3's synthetic tasks: formats byte for byte, answers by hand, splits that share nothing."""

import re
from collections import Counter
from itertools import islice

import pytest

from gpt_modules.data.builtin.synthetic import TASKS, synthetic_documents, synthetic_items
from gpt_modules.data.rows.sources import iter_rows
from gpt_modules.errors import UserError

OPERATIONS = {"plus": lambda a, b: a + b, "minus": lambda a, b: a - b, "times": lambda a, b: a * b}
WORDS = ["casino", "murmur", "banana", "unhappily", "asks", "queen"]


def operands(row):
    found = re.fullmatch(r"\n\nQ: What is (\d+) (plus|minus|times) (\d+)\?\n\nA:", row["context"])
    return int(found[1]), found[2], int(found[3])


@pytest.mark.parametrize("task", [task for task in TASKS if re.match(r"\dD", task) and task != "1DC"])
def test_arithmetic_has_the_published_format_range_and_answers(task):
    rows = synthetic_items(task, 500)
    digits, word = int(task[0]), {"+": "plus", "-": "minus", "x": "times"}[task[2]]
    asked = [operands(row) for row in rows]
    assert len({row["context"] for row in rows}) == 500
    assert {found for _, found, _ in asked} == {word}
    assert all(row["completion"] == f" {OPERATIONS[word](a, b)}" for row, (a, _, b) in zip(rows, asked, strict=True))
    numbers = [n for a, _, b in asked for n in (a, b)]
    assert max(numbers) < 10**digits
    assert 0.05 < sum(n < 10 ** (digits - 1) for n in numbers) / 1000 < 0.15, "a tenth is shorter"


def test_one_digit_composite_follows_the_released_file():
    rows = synthetic_items("1DC", 900)
    pattern = r"\n\nQ: What is \(([1-9]) ([-+*]) ([1-9])\) ([-+*]) ([1-9])\?\n\nA:"
    found = [re.fullmatch(pattern, row["context"]) for row in rows]
    pairs = Counter((match[2], match[4]) for match in found)
    assert len(pairs) == 9
    assert min(pairs.values()) > 60
    for match, row in zip(found, rows, strict=True):
        assert row["completion"] == f" {eval(row['context'][12:-5], {})}", match


@pytest.mark.parametrize(
    ("task", "undo"),
    [
        ("CL", lambda text, word: word in text + text and text != word),
        ("A1", lambda text, word: sorted(text) == sorted(word) and (text[0], text[-1]) == (word[0], word[-1])),
        ("A2", lambda text, word: sorted(text) == sorted(word) and (text[:2], text[-2:]) == (word[:2], word[-2:])),
        ("RI", lambda text, word: text[::2] == word and set(text[1::2]) <= set(" './!") and len(text) % 2 == 1),
        ("RW", lambda text, word: text == word[::-1]),
    ],
)
def test_scrambles_have_the_published_format_and_can_be_undone(task, undo):
    rows = synthetic_items(task, 300)
    assert len(rows) == 300
    for row in rows:
        text = re.fullmatch(r"\n(.+) =", row["context"])[1]
        word = re.fullmatch(r" ([a-z]{5,15})", row["completion"])[1]
        assert undo(text, word)
        assert len(word) > 5 or task == "A1"


def test_a_shuffle_is_another_word_wherever_there_is_one():
    assert all(row["context"] != f"\n{row['completion'][1:]} =" for row in synthetic_items("A1", 300))
    (row,) = synthetic_items("A2", 5, words=["tttttat"])[:1]
    assert row == {"context": "\ntttttat =", "completion": " tttttat"}


def test_words_of_ones_own():
    rows = synthetic_items("RW", 100, words=WORDS)
    assert sorted(row["completion"] for row in rows) == [" banana", " casino", " murmur", " unhappily"]
    assert {row["completion"] for row in synthetic_items("A1", 100, words=WORDS)} == {
        f" {word}" for word in WORDS if len(word) > 4
    }
    with pytest.raises(UserError, match=r"synthetic:RW: words: found none of 6 to 15 letters"):
        synthetic_items("RW", 1, words=["short"])


def test_no_sum_is_in_both_splits_nor_the_same_sum_the_other_way_round():
    train, held_out = (synthetic_items("2D+", 10_000, split=split) for split in ("train", "validation"))
    assert 0.08 < len(held_out) / (len(train) + len(held_out)) < 0.12
    sums = [{frozenset(operands(row)[::2]) for row in rows} for rows in (train, held_out)]
    assert not sums[0] & sums[1]
    words = [
        {row["completion"] for split in [part] for row in synthetic_items("RW", 800, split=split)}
        for part in ("train", "validation")
    ]
    assert not words[0] & words[1]


def test_documents_are_prompts_with_demonstrations_of_their_split():
    held_out = {row["context"] + row["completion"] for row in synthetic_items("2D+", 10_000, split="validation")}
    lengths = Counter()
    for number, row in enumerate(synthetic_documents("2D+", "train")):
        questions = row["text"].split("\n\nQ:")[1:]
        lengths[len(questions)] += 1
        if number < 100:
            assert not {"\n\nQ:" + question for question in questions} & held_out
    assert sorted(lengths) == list(range(1, 9))
    assert min(lengths.values()) > 2000


def documents(split):
    return synthetic_documents("RW", split)


def test_tasks_are_sources_of_text_and_of_items():
    first = [
        [row["text"] for row in islice(rows, 5)]
        for rows in (iter_rows("synthetic:RW", "validation", "pretraining"), *map(documents, ("validation", "train")))
    ]
    assert first[0] == first[1] != first[2]
    assert list(iter_rows("synthetic:2D+", "train", dict)) == synthetic_items("2D+", split="train")
    with pytest.raises(UserError, match=r"synthetic:6D\+: found no task '6D\+', expected one of 2D\+"):
        list(iter_rows("synthetic:6D+", "train", "pretraining"))
    with pytest.raises(UserError, match="synthetic:2D\\+: found text to pretrain on, expected rows"):
        list(iter_rows("synthetic:2D+", "train", "sft"))
