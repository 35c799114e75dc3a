"""GPT-3's tasks as episodes: one task each, different questions, none of validation's in training."""

import numpy as np
import pytest

from gpt_modules.data.builtin.synthetic import synthetic_items
from gpt_modules.data.episodes.arithmetic_and_words import SyntheticTasks
from gpt_modules.errors import UserError


def draw(family, seed, split="train", support=5, query=5):
    episode = family.episode(np.random.default_rng(seed), split, support, query)
    assert (len(episode.support), len(episode.query)) == (support, query)
    return episode.support + episode.query


def test_an_episode_is_of_one_task_and_right():
    seen = set()
    for seed in range(20):
        examples = draw(SyntheticTasks(["3D+", "3D-"]), seed)
        assert len(set(examples)) == 10
        kinds = set()
        for prompt, response, label in examples:
            a, word, b = prompt.removeprefix("\n\nQ: What is ").removesuffix("?\n\nA:").split(" ")
            assert response == f" {int(a) + int(b) if word == 'plus' else int(a) - int(b)}"
            assert label is None
            kinds.add(word)
        assert len(kinds) == 1
        seen |= kinds
    assert seen == {"plus", "minus"}


def test_splits_share_no_question_and_are_those_of_the_sources():
    family = SyntheticTasks(["3D+"])
    train = {example for seed in range(40) for example in draw(family, seed, "train")}
    held_out = {example for seed in range(40) for example in draw(family, seed, "validation")}
    assert not train & held_out
    questions = {row["context"] for row in synthetic_items("3D+", 1000, split="validation")}
    assert {example.prompt for example in held_out} <= questions


def test_an_episode_is_a_function_of_its_generator():
    family = SyntheticTasks(["3D+"])
    assert draw(family, 1) == draw(family, 1) != draw(family, 2)


def test_mistakes():
    with pytest.raises(UserError, match=r"SyntheticTasks: tasks: found '6D\+', expected some of 2D\+, .*RW"):
        SyntheticTasks(["2D+", "6D+"])
    with pytest.raises(UserError, match="SyntheticTasks: tasks: found none"):
        SyntheticTasks([])
    with pytest.raises(UserError, match=r"3D\+: found 1000 validation questions, expected 1001 an episode"):
        draw(SyntheticTasks(["3D+"]), 0, "validation", 1000, 1)
