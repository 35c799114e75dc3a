"""Transforms of sequences against literals and against doing one step after the other."""

from itertools import product

import numpy as np
import pytest

from gpt_modules.data.episodes.strings import parse, spell
from gpt_modules.data.episodes.transforms import SequenceTransforms, steps
from gpt_modules.errors import UserError


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("reverse", "badec"),
        ("sort", "abcde"),
        ("swap neighbours", "ecadb"),
        ("swap the ends", "bedac"),
        ("every other first", "cdbea"),
        ("rotate by 1", "edabc"),
        ("rotate by 3", "abced"),
        ("copy letter 2", "eeeee"),
    ],
)
def test_single_steps(name, answer):
    assert spell(steps(5)[name].apply(parse(["cedab"]))) == [answer]


@pytest.mark.parametrize("length", [3, 6])
def test_a_composition_is_the_second_step_on_what_the_first_gives(length):
    strings = np.random.default_rng(0).integers(4, size=(50, length))
    for first, second in product(steps(length).values(), repeat=2):
        assert np.array_equal(first.then(second).apply(strings), second.apply(first.apply(strings)))


def seen(split, count):
    """What the tasks make of two strings that tell all transforms of 4 letters apart."""
    family, generator = SequenceTransforms(8, 4), np.random.default_rng(0)
    return {tuple(spell(family.task(generator, split)(parse(["dbac", "cabd"])))) for _ in range(count)}


def test_tasks_are_all_different_compositions_but_the_one_that_changes_nothing():
    train, held_out = seen("train", 500), seen("validation", 100)
    probe = parse(["dbac", "cabd"])
    pairs = product(steps(4).values(), repeat=2)
    expected = {tuple(spell(second.apply(first.apply(probe)))) for first, second in pairs} - {("dbac", "cabd")}
    assert train | held_out == expected
    assert not train & held_out
    assert len(held_out) == round(len(expected) / 10)


def test_episodes():
    family = SequenceTransforms()
    episode = family.episode(np.random.default_rng(0), "train", 6, 4)
    assert episode == family.episode(np.random.default_rng(0), "train", 6, 4)
    assert (len(episode.support), len(episode.query)) == (6, 4)
    for prompt, response, _ in episode.support + episode.query:
        assert set(response) <= set(prompt[:-1])
        assert (len(prompt), prompt[-1], len(response)) == (7, ">", 6)
    assert len({prompt for prompt, _, _ in episode.support + episode.query}) == 10


def test_numbers_out_of_range():
    with pytest.raises(UserError, match="SequenceTransforms: length: found 2, expected at least 3 letters"):
        SequenceTransforms(length=2)
