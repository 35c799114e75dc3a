import json
from collections import Counter, defaultdict

import numpy as np
import pytest

from gpt_modules.data.builtin.reviews import finetuning_rows
from gpt_modules.data.episodes.families import Episode, Example
from gpt_modules.data.episodes.ways import (
    WORDS,
    LabelledClasses,
    compose,
    draw_labels,
    draw_texts,
    draw_words,
    texts_needed,
)
from gpt_modules.data.rows.labelled import Columns
from gpt_modules.data.splits import normalise, split_of
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError


@pytest.fixture
def lines(tmp_path, monkeypatch):
    monkeypatch.setenv("GPT_MODULES_CACHE", str(tmp_path / "cache"))

    def write(rows, name="rows.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    return write


def generator(seed=0):
    return np.random.default_rng(seed)


def labelled(classes, each, **columns):
    """Rows `colour 0`, `colour 1`, ... of each class, after its name."""
    return [{"text": f"{name} {i}", "label": name, **columns} for i in range(each) for name in classes]


def episodes(family, split, count=60, support=4, query=3, seed=0):
    rng = generator(seed)
    return [family.episode(rng, split, support, query) for _ in range(count)]


def prompts(some):
    return {example.prompt for one in some for part in one for example in part}


@pytest.mark.parametrize("ways", [2, 3, 5])
def test_any_first_k_are_balanced(ways):
    for seed in range(20):
        labels = draw_labels(generator(seed), ways, 11, 7)
        assert labels.shape == (18,)
        for k in range(12):
            counts = np.bincount(labels[:k], minlength=ways)
            assert counts.max() - counts.min() <= 1
        counts = np.bincount(labels[11:], minlength=ways)
        assert counts.max() - counts.min() <= 1


def test_every_order_of_a_round_and_of_the_query_occurs():
    drawn = [draw_labels(generator(seed), 2, 4, 2).tolist() for seed in range(300)]
    assert Counter(tuple(labels[:2]) for labels in drawn).keys() == {(0, 1), (1, 0)}
    assert {tuple(labels[:4]) for labels in drawn} == {(0, 1, 0, 1), (0, 1, 1, 0), (1, 0, 0, 1), (1, 0, 1, 0)}
    queries = {tuple(draw_labels(generator(seed), 2, 0, 4).tolist()) for seed in range(300)}
    assert len(queries) == 6  # all orders of two and two, rounds or not


@pytest.mark.parametrize(
    ("ways", "support", "query", "needed"), [(2, 5, 4, 5), (3, 1, 1, 2), (4, 0, 8, 2), (2, 1, 0, 1)]
)
def test_texts_needed_are_the_most_a_class_gets(ways, support, query, needed):
    counts = [np.bincount(draw_labels(generator(seed), ways, support, query)).max() for seed in range(60)]
    assert texts_needed(ways, support, query) == needed == max(counts)


def test_label_words_are_single_tokens_without_sentiment():
    lexicon = pytest.importorskip("vaderSentiment.vaderSentiment").SentimentIntensityAnalyzer().lexicon
    tokenizer = Tokenizer.gpt2()
    assert len(set(WORDS)) == len(WORDS) == 40
    for word in WORDS:
        assert len(tokenizer.encode(f" {word}")) == 1
        assert word not in lexicon


@pytest.mark.parametrize("ways", [2, 3])
def test_sets_of_words_do_not_straddle(ways):
    drawn = {
        split: [tuple(draw_words(rng, split, ways)) for _ in range(1500)]
        for split, rng in (("train", generator(1)), ("validation", generator(2)))
    }
    sets = {split: {frozenset(words) for words in found} for split, found in drawn.items()}
    assert not sets["train"] & sets["validation"]
    assert all(len(words) == ways for words in sets["train"] | sets["validation"])
    assert {word for words in sets["train"] for word in words} == set(WORDS)
    if ways == 2:  # of 780 pairs nearly all have come, each in both orders
        assert len(sets["validation"]) / (len(sets["train"]) + len(sets["validation"])) == pytest.approx(0.1, abs=0.04)
        turned = sum(words[::-1] in set(drawn["validation"]) for words in set(drawn["validation"]))
        assert turned == len(set(drawn["validation"]))


def test_words_of_ones_own():
    both = {tuple(draw_words(generator(seed), "train", 2, ["a", "b"])) for seed in range(30)}
    assert both == {("a", "b"), ("b", "a")}
    assert set(draw_words(generator(), "validation", 2, ["a", "b"])) == {"a", "b"}
    with pytest.raises(UserError, match=r"^words: found 1 different ones, expected at least 2, one for each class$"):
        draw_words(generator(), "train", 2, ["a", "a"])
    with pytest.raises(UserError, match=r"^words: found 3, and no 2 of them are for validation, expected more words$"):
        draw_words(generator(), "validation", 2, ["cup", "door", "map"])


def test_an_episode_by_hand():
    assert compose(np.array([1, 0, 1]), [["so cold"], ["so hot", "so warm"]], ["ice", "fire"], ":", 2) == Episode(
        [Example("so hot:", " fire", 1), Example("so cold:", " ice", 0)], [Example("so warm:", " fire", 1)]
    )


def test_texts_are_drawn_without_return():
    texts = [str(i) for i in range(9)]
    assert sorted(draw_texts(generator(), texts, 9)) == texts
    assert {draw_texts(generator(seed), texts, 3)[0] for seed in range(200)} == set(texts)
    assert draw_texts(generator(), texts, 0) == []


def test_many_classes_part_by_class(lines):
    names = [f"colour{letter}" for letter in "abcdefghij"]
    family = LabelledClasses(lines(labelled(names, 6)), ways=3, separator=" is", validation_fraction=0.4)
    parts = {split: episodes(family, split) for split in ("train", "validation")}
    found = {split: {e.response for one in some for e in one.support} for split, some in parts.items()}
    assert {split: len(answers) for split, answers in found.items()} == {"train": 5, "validation": 5}
    assert found["train"] | found["validation"] == {f" {name}" for name in names}
    assert not prompts(parts["train"]) & prompts(parts["validation"])
    for one in parts["train"] + parts["validation"]:
        for example in one.support + one.query:
            assert example.prompt.split()[0] == example.response.strip()  # what `labelled` wrote
            assert example.prompt.endswith(" is")
        assert not prompts([Episode(one.support, [])]) & prompts([Episode([], one.query)])


def test_few_classes_part_by_text(lines):
    family = LabelledClasses(lines(labelled("ab", 40)), validation_fraction=0.25)
    train, validation = (episodes(family, split, 400) for split in ("train", "validation"))
    assert len(prompts(train)) + len(prompts(validation)) == 80
    assert len(prompts(validation)) == sum(split_of(row["text"], 0.25) == "validation" for row in labelled("ab", 40))
    assert not prompts(train) & prompts(validation)
    assert {e.response for one in validation for e in one.query} == {" a", " b"}


def test_numbers_of_classes_are_drawn_per_task(lines):
    family = LabelledClasses(lines(labelled("abc", 30)))
    counts = Counter((e.response, e.label) for one in episodes(family, "train", 200) for e in one.query)
    assert len(counts) == 6
    assert min(counts.values()) > 40  # of 600, 100 expected


def test_with_random_words_only_the_support_tells(lines):
    family = LabelledClasses(lines(labelled("ab", 40)), random_words=True)
    meanings = defaultdict(set)
    for one in episodes(family, "train", 1500, 2, 0):
        stands = {(e.prompt[0], e.response, e.label) for e in one.support + one.query}
        assert len(stands) == 2
        for name, response, label in stands:
            assert response.strip() in WORDS
            meanings[response].add((name, label))
    assert all(len(found) == 4 for found in meanings.values())


def test_a_validation_source_has_its_own_classes_and_no_text_of_training(lines):
    train = lines(labelled("ab", 8))
    other = lines([*labelled("bc", 20), {"text": "A  3", "label": "c"}], "validation.jsonl")
    family = LabelledClasses(train, other)
    validation = episodes(family, "validation")
    assert {e.response for one in validation for e in one.query} == {" b", " c"}
    assert not {normalise(text) for text in prompts(validation)} & prompts(episodes(family, "train"))
    same = LabelledClasses(train, lines([*labelled("b", 8), *labelled("c", 8)], "same.jsonl"))
    with pytest.raises(UserError, match=r"same\.jsonl: label: found 1 classes for validation, expected at least 2$"):
        same.episode(generator(), "validation", 2, 2)


def test_a_text_with_two_labels_counts_once(lines):
    rows = [*labelled("ab", 8), *({"text": f"A {i}", "label": "b"} for i in range(8))]
    family = LabelledClasses(lines(rows))
    assert all(e.prompt[0] == e.response[1] for one in episodes(family, "train") for e in one.query)


def test_numbers_and_their_names(lines):
    rows = [{"s": f"x{i}", "t": f"y{i}", "y": i % 2} for i in range(40)]
    columns = Columns("s", pair="t", label="y")
    source = lines(rows)
    for labels, answers in ((["1", "0"], ("0", "1")), (["even", "odd"], ("even", "odd")), (None, ("0", "1"))):
        family = LabelledClasses(source, columns=columns, labels=labels, separator=" ?")
        for example in family.episode(generator(), "train", 6, 6).support:
            i = int(example.prompt.split()[0][1:])
            assert (example.prompt, example.response) == (f"x{i} y{i} ?", f" {answers[i % 2]}")


def test_reviews_keep_their_own_split():
    family = LabelledClasses("reviews", separator="")
    for split in ("train", "validation"):
        known = {(row["text"], f" {row['label']}") for row in finetuning_rows(split)}
        some = episodes(family, split, 20, 10, 10)
        assert {(e.prompt, e.response) for one in some for e in one.support + one.query} <= known


def test_the_generator_decides_all(lines):
    source = lines(labelled("abcdef", 20))
    drawn = [
        episodes(LabelledClasses(source, random_words=True, validation_fraction=0.2), "train", 5, seed=seed)
        for seed in (3, 3, 4)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("rows", "ways", "message"),
    [
        (labelled("ab", 30), 1, "ways: found 1, expected at least 2"),
        (labelled("ab", 30), 3, "rows.jsonl: label: found 2 classes for train, expected at least 3"),
        (
            [*labelled("ab", 30), *labelled("c", 3)],
            2,
            "rows.jsonl: label: found 2 different texts of class 'c' for train, expected at least 4 (support",
        ),
        ([{"text": "a"}], 2, "rows.jsonl:1: label: found no such field among ['text'], expected text or a whole numb"),
        ([{"label": "a"}], 2, "rows.jsonl:1: text: found no such field among ['label'], expected text"),
        (labelled("a", 30), 2, "rows.jsonl: label: found 1 class in all rows, expected at least 2"),
    ],
)
def test_what_cannot_be_episodes_is_said_in_the_first(lines, rows, ways, message):
    with pytest.raises(UserError) as caught:
        LabelledClasses(lines(rows), ways=ways).episode(generator(), "train", 2 * ways, 2 * ways)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_is_read_by_the_constructor(tmp_path):
    family = LabelledClasses(str(tmp_path / "gone.jsonl"))
    assert family.classes == 2
    with pytest.raises(UserError, match=r"gone\.jsonl: found no such file"):
        family.episode(generator(), "train", 2, 2)
