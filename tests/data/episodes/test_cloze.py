import json
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from gpt_modules.data.episodes.cloze import Cloze, blank_out, split_sentences
from gpt_modules.data.episodes.ways import WORDS
from gpt_modules.data.splits import normalise
from gpt_modules.errors import UserError

SIX = """The River runs
past old mills.  A moon rose over quiet fields? "Nobody swims in that river today!" We saw no moon last week.

River and moon meet at dawn. It rains"""
NONSENSE = [a + b + c for a in ("ba", "ko", "mi", "tu", "re") for b in "lnst" for c in ("ga", "po")]


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.setenv("GPT_MODULES_CACHE", str(tmp_path / "cache"))

    def text(content, name="text.txt"):
        (tmp_path / name).write_text(content)
        return str(tmp_path / name)

    return text


@pytest.fixture
def nonsense(write):
    """Forty words in 600 sentences of 20, some in capitals."""
    rng = random.Random(0)
    words = [[rng.choice(NONSENSE) for _ in range(20)] for _ in range(600)]
    return write(" ".join(" ".join(rng.choice((w, w.title())) for w in some) + "." for some in words))


@pytest.fixture(scope="module")
def reviews():
    """Indexed once; what is drawn from it is a function of the generator."""
    return Cloze("reviews", ways=3)


def episodes(family, split, count=60, support=4, query=4, seed=0):
    rng = np.random.default_rng(seed)
    return [family.episode(rng, split, support, query) for _ in range(count)]


def prompts(some):
    return {e.prompt for one in some for e in one.support + one.query}


def test_a_file_of_six_sentences_by_hand(write):
    """Only "river" and "moon" are in two sentences, and one sentence holds both."""
    source = write(SIX)
    family = Cloze(source, validation=write("Nothing to see in here.", "other.txt"), min_count=2, max_fraction=1.0)
    river = {"The ____ runs past old mills. ->", '"Nobody swims in that ____ today!" ->'}
    moon = {"A ____ rose over quiet fields? ->", "We saw no ____ last week. ->"}
    orders = set()
    for one in episodes(family, "train", 40, 2, 2):
        by_label = defaultdict(set)
        for example in one.support + one.query:
            by_label[example.label].add(example.prompt)
        assert sorted(map(sorted, by_label.values())) == sorted(map(sorted, (river, moon)))
        assert len({(e.label, e.response) for e in one.support + one.query}) == 2
        assert {e.response.strip() for e in one.support} <= set(WORDS)
        orders.add(by_label[0] == river)
    assert orders == {True, False}


def test_sentences_of_a_text():
    assert list(split_sentences(SIX)) == [
        "The River runs past old mills.",
        "A moon rose over quiet fields?",
        '"Nobody swims in that river today!"',
        "We saw no moon last week.",
        "River and moon meet at dawn.",
    ]


@pytest.mark.parametrize(
    ("sentence", "word", "most", "expected"),
    [
        ("a b c d e f g h", "e", 4, "c d _ f"),
        ("a b c d e f g h", "a", 4, "_ b c d"),
        ("a b c d e f g h", "h", 4, "e f g _"),
        ("a b c d e f g h", "e", 24, "a b c d _ f g h"),
        ("Film on film: a film's end", "film", 24, "_ on _: a _'s end"),
        ("No filming. Film-maker, FILM!", "film", 24, "No filming. _-maker, _!"),
        ("don't ask Don", "don", 24, "don't ask _"),
        ("Über alles über", "über", 2, "_ alles"),
    ],
)
def test_the_blank_and_what_is_left_around_it(sentence, word, most, expected):
    assert blank_out(sentence, word, "_", most) == expected


def test_a_word_that_is_not_there():
    with pytest.raises(ValueError, match="found no 'film' in 'the films'"):
        blank_out("the films", "film", "_", 8)


@pytest.mark.parametrize("ways", [2, 3])
def test_a_class_is_one_word_that_no_prompt_shows(nonsense, ways):
    """By trying all words: just one fills all blanks of a class, and the sentences hold none of the other classes'."""
    family = Cloze(nonsense, ways=ways, max_fraction=1.0, max_words=8, validation_fraction=0.3)
    sentences = [normalise(sentence) for sentence in split_sentences(Path(nonsense).read_text())]
    asked = {"train": set(), "validation": set()}
    for split in asked:
        for one in episodes(family, split, 10, 2 * ways, 2 * ways):
            words, whole = {}, defaultdict(list)
            for label in range(ways):
                shown = [e.prompt.removesuffix(" ->").lower() for e in one.support + one.query if e.label == label]
                filled = {w: [text.replace("____", w) for text in shown] for w in NONSENSE}
                fits = {w: [[s for s in sentences if t in s] for t in texts] for w, texts in filled.items()}
                (words[label],) = [w for w in NONSENSE if all(fits[w])]
                assert all(words[label] not in text for text in shown)
                assert all(text.count("____") >= 1 and len(text.split()) == 8 for text in shown)
                whole[label] = [found[0] for found in fits[words[label]]]
            for label, texts in whole.items():
                others = {word for other, word in words.items() if other != label}
                assert not any(others & set(text.rstrip(".").split()) for text in texts)
            asked[split] |= set(words.values())
    assert not asked["train"] & asked["validation"]


def test_splits_share_no_sentence(nonsense):
    family = Cloze(nonsense, max_fraction=1.0, validation_fraction=0.3)
    found = {split: prompts(episodes(family, split, 100)) for split in ("train", "validation")}
    sentences = [normalise(sentence) for sentence in split_sentences(Path(nonsense).read_text())]
    pieces = {split: {max(p.lower().split("____"), key=len) for p in some} for split, some in found.items()}
    whole = {split: {s for s in sentences if any(p in s for p in some)} for split, some in pieces.items()}
    assert not whole["train"] & whole["validation"]
    assert min(map(len, whole.values())) > 100


def test_a_validation_source_gives_what_training_has_not(nonsense, tmp_path):
    (tmp_path / "twin.txt").write_text(f"{Path(nonsense).read_text()}\n\n")  # the same sentences in another file
    twin = str(tmp_path / "twin.txt")
    with pytest.raises(UserError, match=r"found 0 words that 10 to 0 of 0 sentences hold for validation, expected"):
        Cloze(nonsense, twin).episode(np.random.default_rng(0), "validation", 2, 2)


def test_support_and_query_share_no_prompt(write):
    """Sentences that are alike but for the blank count once: eight are left of each word's sixteen."""
    lines = [f"in {place} we saw {word} {end}." for place in "abcdefgh" for word in ("rain", "Snow") for end in "xx"]
    family = Cloze(
        write("\n".join(lines + [line.replace("rain", "hail") for line in lines])), min_count=4, max_fraction=1
    )
    for one in episodes(family, "train", 30, 2, 2):
        assert len({e.prompt for e in one.support + one.query}) == 4


def test_labels_are_balanced_and_drawn_per_task(reviews):
    stands = set()
    for one in episodes(reviews, "validation", 30, 7, 5):
        labels = [e.label for e in one.support]
        assert sorted(labels[:3]) == sorted(labels[3:6]) == [0, 1, 2]
        answers = {(e.label, e.response) for e in one.support + one.query}
        assert len(answers) == 3
        stands |= answers
    assert len(stands) > 30


def test_the_generator_decides_all(nonsense, reviews):
    assert episodes(reviews, "train", 5, seed=1) == episodes(reviews, "train", 5, seed=1)
    assert episodes(reviews, "train", 5, seed=1) != episodes(reviews, "train", 5, seed=2)
    opened, again = (Cloze(nonsense, max_fraction=1.0) for _ in range(2))
    episodes(again, "train", 5, seed=2)  # what was drawn before leaves no trace
    assert episodes(opened, "train", 5) == episodes(again, "train", 5)


def test_reading_stops_at_so_many_sentences(write):
    source = write("".join(f"A river is {i} miles long. One moon has {i} craters there. " for i in range(50)))
    known = prompts(
        episodes(Cloze(source, max_sentences=20, max_fraction=1, min_count=2, validation_fraction=0.01), "train")
    )
    assert all(int(number) < 10 for p in known for number in p.split() if number.isdigit())


def test_other_columns(write):
    rows = [{"body": f"A river is {i} miles long. One moon has {i} craters there."} for i in range(20)]
    source = write("".join(json.dumps(row) + "\n" for row in rows), "rows.jsonl")
    family = Cloze(source, max_fraction=1, text_field="body")
    assert len(family.episode(np.random.default_rng(0), "train", 4, 2).support) == 4
    with pytest.raises(UserError, match=r"rows\.jsonl:1: text: found no such field among \['body'\], expected text$"):
        Cloze(source).episode(np.random.default_rng(0), "train", 4, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ways": 1}, "ways: found 1, expected at least 2"),
        ({"max_words": 3}, "max_words: found 3, expected at least 4"),
        ({}, "text.txt: found 0 words that 10 to 0 of 3 sentences hold for train, expected at least 2 (min_count 1"),
        ({"min_count": 5, "max_fraction": 1.0}, "found 0 words that 5 to 3 of 3 sentences hold for train, expected at"),
    ],
)
def test_what_cannot_be_episodes_is_said_in_the_first(write, arguments, message):
    with pytest.raises(UserError) as caught:
        Cloze(write(SIX), **{"validation_fraction": 0.3, **arguments}).episode(np.random.default_rng(0), "train", 2, 2)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_words_that_are_never_apart(write):
    source = write("".join(f"The river and moon are {i} years old. " for i in range(40)))
    with pytest.raises(
        UserError, match=r"found no 2 words with 2 sentences of their own for train, expected more text$"
    ):
        Cloze(source, max_fraction=1).episode(np.random.default_rng(0), "train", 2, 2)


def test_nothing_is_read_by_the_constructor(tmp_path):
    family = Cloze(str(tmp_path / "gone.txt"), ways=4)
    assert family.classes == 4
    with pytest.raises(UserError, match=r"gone\.txt: found no such file"):
        family.episode(np.random.default_rng(0), "train", 4, 4)
