import re
from collections import defaultdict

import numpy as np
import pytest

from gpt_modules.data.builtin.reviews import load_reviews
from gpt_modules.data.episodes.label_words import LabelWords
from gpt_modules.data.splits import normalise
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError

RATINGS = defaultdict(list)
for review in load_reviews():
    RATINGS[review.domain, review.split, review.text].append(review.rating)


def episodes(family, split, count=200, support=5, query=3, seed=0):
    rng = np.random.default_rng(seed)
    return [family.episode(rng, split, support, query) for _ in range(count)]


def rows(episode):
    return [(e.prompt.removesuffix(" ->"), e.response, e.label) for e in episode.support + episode.query]


def sign(domain, split, text):
    """1 for praise, -1 for blame, as people rated it."""
    ratings = RATINGS[domain, split, text]
    assert max(map(abs, ratings)) >= 1
    return 1 if ratings[0] > 0 else -1


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_word_stands_for_a_sign_and_a_number(split):
    for one in episodes(LabelWords(), split, 50, 10, 6):
        assert (len(one.support), len(one.query)) == (10, 6)
        meanings = {(sign("film", split, text), word, label) for text, word, label in rows(one)}
        assert len(meanings) == 2
        assert all(len(set(column)) == 2 for column in zip(*meanings, strict=True))
        assert all(re.fullmatch(" [a-z]+", word) for _, word, _ in meanings)


def test_nothing_but_the_support_tells():
    """Over tasks a word stands for praise as often as for blame, and so does a number."""
    praise, word_signs, number_signs = 0, defaultdict(set), []
    for one in episodes(LabelWords(), "train", 1000, 2, 0):
        for text, word, label in rows(one):
            praise = sign("film", "train", text)
            word_signs[word].add(praise)
            number_signs.append(praise if label else -praise)
    assert all(signs == {1, -1} for signs in word_signs.values())
    assert abs(np.mean(number_signs)) < 0.2  # its standard error is 0.03


def test_splits_share_no_sentence_and_no_pair_of_words():
    family = LabelWords(["film", "product"])
    train, validation = (episodes(family, split, 400, 6, 4) for split in ("train", "validation"))
    texts = [{normalise(text) for one in some for text, _, _ in rows(one)} for some in (train, validation)]
    assert not texts[0] & texts[1]
    pairs = [{frozenset(word for _, word, _ in rows(one)) for one in some} for some in (train, validation)]
    assert not pairs[0] & pairs[1]
    assert all(len(pair) == 2 for pair in pairs[0] | pairs[1])


def test_no_sentence_is_in_an_episode_twice():
    """With nearly all sentences in one: a few are in the data twice."""
    for domain, count in (("film", 8000), ("product", 1600)):
        one = LabelWords([domain]).episode(np.random.default_rng(0), "train", count // 2, count // 2)
        assert len({normalise(text) for text, _, _ in rows(one)}) == count


def test_a_task_is_about_one_domain():
    domains = []
    for one in episodes(LabelWords(["film", "product"]), "train", 100):
        found = {
            domain for domain in ("film", "product") if all((domain, "train", t) in RATINGS for t, _, _ in rows(one))
        }
        domains += list(found) if len(found) == 1 else []
    assert 25 < domains.count("film") < 75
    assert len(domains) > 95  # a sentence may be in both


def test_a_gap_leaves_what_is_clear():
    for one in episodes(LabelWords(gap=2.5), "train", 30):
        assert all(max(map(abs, RATINGS["film", "train", text])) >= 2.5 for text, _, _ in rows(one))


def test_words_and_separator_of_ones_own():
    for split in ("train", "validation"):
        for one in episodes(LabelWords(words=["yes", "no"], separator="\n="), split, 10):
            assert {e.response for e in one.support} == {" yes", " no"}
            assert all(e.prompt.endswith("\n=") for e in one.support + one.query)


def test_a_response_is_the_token_after_the_prompt():
    tokenizer = Tokenizer.gpt2()
    for one in episodes(LabelWords(["film", "product"]), "validation", 20):
        for example in one.support:
            (word,) = tokenizer.encode(example.response)
            assert tokenizer.encode(example.prompt + example.response) == [*tokenizer.encode(example.prompt), word]


def test_the_generator_decides_all():
    assert episodes(LabelWords(), "train", 5, seed=1) == episodes(LabelWords(), "train", 5, seed=1)
    assert episodes(LabelWords(), "train", 5, seed=1) != episodes(LabelWords(), "train", 5, seed=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"domains": []}, "domains: found [], expected film, product or both"),
        ({"words": ["cup"]}, "words: found ['cup'], expected at least 2 different ones"),
        (
            {"gap": 5.0},
            "reviews: found 0 positive film sentences rated 5 or more from neutral for train, expected at least 4 "
            "(support and query)",
        ),
    ],
)
def test_what_cannot_be_episodes(arguments, message):
    with pytest.raises(UserError) as caught:
        LabelWords(**arguments).episode(np.random.default_rng(0), "train", 5, 1)
    assert str(caught.value) == message


def test_sentences_may_be_short_ones_only():
    short = episodes(LabelWords(max_words=9), "train", 50)
    lengths = [len(text.split()) for one in short for text, _, _ in rows(one)]
    assert max(lengths) == 9
    with pytest.raises(UserError, match=r"reviews: found .* film sentences of up to 2 words rated 1 or more"):
        LabelWords(max_words=2).episode(np.random.default_rng(0), "train", 100, 100)
