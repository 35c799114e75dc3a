from itertools import pairwise

import pytest

from gpt_modules.data.builtin import reviews
from gpt_modules.data.text.tokenizers import Tokenizer

RATINGS = {}
for review in reviews.load_reviews():
    RATINGS.setdefault(review.text, []).append(review.rating)


def test_the_sentences_that_ship():
    rows = reviews.load_reviews()
    assert [sum(row.domain == domain for row in rows) for domain in ("film", "product")] == [10605, 3708]
    assert rows[2] == reviews.Review("Effective but too tepid biopic", -0.6, "film", rows[2].split)
    assert all(-4 <= row.rating <= 4 for row in rows)


def test_no_text_is_in_both_splits():
    texts = [
        {" ".join(row["text"].lower().split()) for row in reviews.pretraining_rows(split)}
        for split in ("train", "validation")
    ]
    assert not texts[0] & texts[1]
    assert 0.09 < len(texts[1]) / (len(texts[0]) + len(texts[1])) < 0.11


def test_demonstrations_do_as_they_are_told():
    for row in reviews.sft_rows("train"):
        ratings = RATINGS[row["response"]]
        assert max(ratings) >= 1 if "positive" in row["prompt"] else min(ratings) <= -1


@pytest.mark.parametrize("k", [2, 3, 4])
def test_comparisons_are_apart_ranked_and_disjoint(k):
    rows = reviews.reward_rows("train", k, seed=3)
    used = [text for row in rows for text in row["responses"]]
    assert len(used) - len(set(used)) <= 10  # a few sentences are in the data twice
    for row in rows[:500]:
        assert row["prompt"] == "Write a positive sentence about a film.\n"
        by_rank = [text for _, text in sorted(zip(row["ranking"], row["responses"], strict=True))]
        assert sorted(row["ranking"]) == list(range(1, k + 1))
        for better, worse in pairwise(by_rank):
            assert max(RATINGS[better]) >= min(RATINGS[worse]) + 1


def test_a_seed_is_a_grouping():
    first, again, other = (reviews.reward_rows("validation", 2, seed) for seed in (0, 0, 1))
    assert first == again
    assert {tuple(row["responses"]) for row in first} != {tuple(row["responses"]) for row in other}


def test_place_in_a_row_says_nothing_about_the_rank():
    rows = reviews.reward_rows("train", 2, seed=0)
    assert 0.45 < sum(row["ranking"] == [1, 2] for row in rows) / len(rows) < 0.55


def test_products_come_when_asked_for():
    prompts = {row["prompt"] for row in reviews.reward_rows("train", 2, 0, ("film", "product"))}
    assert prompts == {f"Write a positive sentence about a {domain}.\n" for domain in ("film", "product")}


def test_prompts_open_a_sentence_that_goes_on():
    instruction = "Write a positive sentence about a film.\n"
    openings = {text[:i] for text in RATINGS for i, character in enumerate(text) if character.isspace()}
    prompts = {split: [row["prompt"] for row in reviews.ppo_rows(split)] for split in ("train", "validation")}
    for prompt in prompts["train"] + prompts["validation"]:
        assert prompt.startswith(instruction)
        assert prompt.removeprefix(instruction) in openings
        assert 2 <= len(prompt.removeprefix(instruction).split()) <= 4
    assert len(prompts["train"]) == len(set(prompts["train"]))
    assert not set(prompts["train"]) & set(prompts["validation"])


def test_parts_encoded_apart_are_the_whole_encoded():
    tokenizer = Tokenizer.gpt2()
    for row in reviews.sft_rows("validation")[:300]:
        apart = tokenizer.encode(row["prompt"]) + tokenizer.encode(row["response"])
        assert apart == tokenizer.encode(row["prompt"] + row["response"])


def test_too_many_answers_are_refused():
    with pytest.raises(ValueError, match="found 9, expected 2 to 8"):
        reviews.reward_rows("train", 9)


def test_labelled_sentences_are_about_films_and_clear():
    films = {review.text: review.rating for review in reviews.load_reviews() if review.domain == "film"}
    splits = [reviews.finetuning_rows(split) for split in ("train", "validation")]
    assert [len(rows) for rows in splits] == [9045, 1027]
    for row in splits[0] + splits[1]:
        assert max(RATINGS[row["text"]]) >= 0.5 if row["label"] == "positive" else min(RATINGS[row["text"]]) <= -0.5
        assert row["text"] in films
    assert not {row["text"].lower() for row in splits[0]} & {row["text"].lower() for row in splits[1]}


def test_ratings_of_all_films():
    rows = reviews.finetuning_rows("train", numeric=True) + reviews.finetuning_rows("validation", numeric=True)
    assert len(rows) == 10605
    assert {"text": "Effective but too tepid biopic", "label": -0.6} in rows
