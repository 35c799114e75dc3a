"""Ciphers: one permutation a task, tasks of one split never in the other, queries that were not seen."""

import numpy as np
import pytest

from gpt_modules.data.episodes.ciphers import AffineCipher, SubstitutionCipher
from gpt_modules.errors import UserError

FAMILIES = [
    SubstitutionCipher(8, 1),
    SubstitutionCipher(6, 3),
    SubstitutionCipher(26, 30),
    AffineCipher(),
    AffineCipher(shifts_only=True),
]


def draw(family, seed, split="train", support=12, query=12):
    return family.episode(np.random.default_rng(seed), split, support, query)


def mapping(episode):
    """What every letter became: raises where a letter became two."""
    found = {}
    for prompt, response, label in episode.support + episode.query:
        assert prompt[-1] == ">"
        assert label is None
        for letter, image in zip(prompt[:-1], response, strict=True):
            assert found.setdefault(letter, image) == image
    return found


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: type(family).__name__)
def test_support_and_query_agree_with_one_permutation(family):
    for seed in range(20):
        found = mapping(draw(family, seed))
        assert len(set(found.values())) == len(found), "two letters never become one"
        assert set(found.values()) <= {chr(ord("a") + i) for i in range(family.symbols)}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: type(family).__name__)
def test_an_episode_is_a_function_of_its_generator(family):
    first, again, other = draw(family, 1), draw(family, 1), draw(family, 2)
    assert first == again != other
    assert (len(first.support), len(first.query)) == (12, 12)


@pytest.mark.parametrize("family", FAMILIES[1:3] + FAMILIES[3:4], ids=lambda family: type(family).__name__)
def test_no_query_is_a_line_of_the_support(family):
    for seed in range(20):
        episode = draw(family, seed)
        assert len(set(episode.support + episode.query)) == 24


def test_substitutions_of_the_two_splits_never_meet():
    def tasks(split, count, length):
        episodes = [draw(SubstitutionCipher(5, length), seed, split, 40, 1) for seed in range(count)]
        return {tuple(sorted(mapping(episode).items())) for episode in episodes}

    train, held_out = tasks("train", 1500, 1), tasks("validation", 200, 6)
    whole = {task for task in train | held_out if len(task) == 5}
    assert not train & held_out
    assert len(whole) == 120, "every permutation of five letters is in one of them"
    assert 6 <= len(held_out) <= 18


def test_a_substitution_gives_nothing_away_about_a_letter():
    images = np.zeros((8, 8))
    for seed in range(1600):
        for letter, image in mapping(draw(SubstitutionCipher(8, 8), seed, support=4, query=1)).items():
            images[ord(letter) - 97, ord(image) - 97] += 1
    shares = images / images.sum(axis=1, keepdims=True)
    assert np.abs(shares - 1 / 8).max() < 0.05, "1 / 8, 0.008 a standard deviation"


@pytest.mark.parametrize("shifts_only", [False, True])
def test_affine_ciphers_are_lines(shifts_only):
    slopes = set()
    for seed in range(100):
        found = {ord(x) - 97: ord(y) - 97 for x, y in mapping(draw(AffineCipher(10, 5, shifts_only), seed)).items()}
        (slope,) = {(found[x + 1] - found[x]) % 10 for x in found if x + 1 in found}
        slopes.add(slope)
        assert all((y - found[0]) % 10 == slope * x % 10 for x, y in found.items())
        assert (slope, found[0]) != (1, 0), "the plain text is no cipher"
    assert slopes == ({1} if shifts_only else {1, 3, 7, 9})


@pytest.mark.parametrize(("shifts_only", "ciphers", "held_out"), [(False, 311, 31), (True, 25, 2)])
def test_affine_ciphers_of_the_two_splits_never_meet(shifts_only, ciphers, held_out):
    def tasks(split, count):
        family = AffineCipher(26, 4, shifts_only)
        generator = np.random.default_rng(0)
        letters = np.arange(26)[None]
        return {tuple(family.task(generator, split)(letters)[0].tolist()) for _ in range(count)}

    train, validation = tasks("train", 4000), tasks("validation", 600)
    assert not train & validation
    assert (len(train | validation), len(validation)) == (ciphers, held_out)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SubstitutionCipher(27), "SubstitutionCipher: symbols: found 27, expected 5 to 26 letters"),
        (lambda: SubstitutionCipher(4), "SubstitutionCipher: symbols: found 4, expected 5 to 26 letters"),
        (lambda: AffineCipher(2), "AffineCipher: symbols: found 2, expected 3 to 26 letters"),
        (lambda: AffineCipher(length=0), "AffineCipher: length: found 0, expected at least 1 letters"),
    ],
)
def test_numbers_out_of_range(make, message):
    with pytest.raises(UserError, match=message):
        make()
