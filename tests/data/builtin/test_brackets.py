"""A task whose best answer is known: what is made of it, and that nothing but the best answer scores 1."""

import itertools

from gpt_modules.data.builtin.brackets import best_answer, bracket_prompts, bracket_texts, closed_share
from gpt_modules.data.rows.sources import fingerprint, iter_rows, load_splits

SPLITS = ("train", "validation")


def test_the_best_answer_closes_the_innermost_first():
    assert best_answer("([<") == ">])"
    assert closed_share(["([<"] * 6, [">])", ">)]", "", ">]", ">])>", ")])"]) == [1.0, 1 / 3, 0.0, 2 / 3, 3 / 4, 2 / 3]


def test_no_other_answer_scores_one():
    answers = ["".join(kinds) for length in range(5) for kinds in itertools.product(")]}>", repeat=length)]
    scores = closed_share(["{(["] * len(answers), answers)
    assert [answer for answer, score in zip(answers, scores, strict=True) if score == 1] == ["])}"]
    assert min(scores) == 0.0


def test_every_prompt_stands_in_one_split():
    train, validation = ([row["prompt"] for row in bracket_prompts(split)] for split in SPLITS)
    assert len(train) + len(validation) == len({*train, *validation}) == 4**3
    assert 3 <= len(validation) <= 13


def test_texts_close_as_many_of_any_kind():
    """So that a model of them knows how long an answer is, and a quarter of what is in it by chance."""
    texts = [row["text"] for row in bracket_texts("train")]
    assert {(len(text), set(text[:3]) <= set("([{<"), set(text[3:]) <= set(")]}>")) for text in texts} == {
        (6, True, True)
    }
    scores = closed_share([text[:3] for text in texts], [text[3:] for text in texts])
    assert abs(sum(scores) / len(scores) - 0.25) < 0.02
    assert not {row["text"] for row in bracket_texts("validation")} & set(texts)


def test_it_is_a_source_with_splits_of_its_own():
    for split in SPLITS:
        assert list(iter_rows("brackets", split, "pretraining")) == bracket_texts(split)
    assert load_splits("brackets", None, "ppo") == tuple(map(bracket_prompts, SPLITS))
    assert fingerprint("brackets", "train") != fingerprint("brackets", "validation")
