"""From what a reward says to what is optimised, worked by hand and against NumPy."""

import numpy as np
import pytest
import torch

from gpt_modules.errors import UserError
from gpt_modules.training.rl.scores import Moments, ScoresConfig, expect_spread, first_moments, optimised

SCORES = torch.tensor([10.0, 40.0, -20.0, 10.0])
ENDED = torch.tensor([True, True, True, False])
LENGTHS = torch.tensor([2, 5, 9, 10])
SEEN = Moments("running", 4, 10.0, 4 * 400.0)  # mean 10, deviation 20


def shaped(missing=-1.0, moments=Moments(), **settings):
    return optimised(SCORES, ENDED, LENGTHS, ScoresConfig(**settings), moments, missing).tolist()


def test_without_a_wish_a_score_is_what_the_reward_says_and_a_missing_end_replaces_it():
    assert shaped() == [10.0, 40.0, -20.0, -1.0]
    assert shaped(missing=None) == SCORES.tolist()


def test_the_order_is_normalise_clip_missing_end_length():
    """(10 - 10) / 20, (40 - 10) / 20, (-20 - 10) / 20; within 1; the last did not end: -5, which no clip touches; then
    a quarter for each token beyond 8, of all.
    """
    found = shaped(missing=-5.0, moments=SEEN, normalise="running", clip=1.0, length_penalty=0.25, free_length=8)
    assert found == [0.0, 1.0, -1.0 - 0.25, -5.0 - 0.5]
    assert shaped(missing=None, moments=SEEN, normalise="running") == [0.0, 1.5, -1.5, 0.0]
    assert shaped(clip=15.0) == [10.0, 15.0, -15.0, -1.0]


def test_a_length_penalty_is_dapos_soft_overlong_punishment():
    """Yu et al. 2025, equation 13, with L_max 10 and L_cache 4: 0 up to 6 tokens, then (6 - length) / 4, -1 at 10."""
    paid = [a - b for a, b in zip(shaped(length_penalty=1 / 4, free_length=6), shaped(), strict=True)]
    assert paid == [0.0, 0.0, -0.75, -1.0]


def test_a_length_penalty_counts_from_the_first_token():
    assert shaped(missing=None, length_penalty=1.0) == [8.0, 35.0, -29.0, 0.0]


@pytest.mark.parametrize("parts", [[40], [1, 39], [13, 13, 14], [1] * 40])
def test_moments_are_those_of_all_scores_however_they_came(parts):
    scores = 3.0 + 100.0 * torch.randn(40, generator=torch.Generator().manual_seed(1))
    moments = Moments("running")
    for part in scores.split(parts):
        moments = moments.joined(part)
    whole = scores.double().numpy()
    assert (moments.of, moments.seen) == ("running", 40)
    assert moments.mean == pytest.approx(np.mean(whole), rel=1e-12)
    assert moments.deviation == pytest.approx(np.std(whole), rel=1e-12)
    normalised = moments.normalised(scores)
    assert normalised.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert normalised.std(unbiased=False).item() == pytest.approx(1.0, rel=1e-6)
    assert normalised.dtype == torch.float32


def test_before_any_score_they_are_as_they_are_and_equal_ones_are_zero():
    assert torch.equal(Moments("running").normalised(SCORES), SCORES)
    equal = torch.full((3,), 7.0)
    assert Moments("running").joined(equal).normalised(equal).tolist() == [0.0] * 3


def test_equal_scores_of_the_reference_have_no_gain():
    line = r"^model\.init_args\.scores\.normalise: found '4 answers of the reference that all score 7', expected scores"
    with pytest.raises(UserError, match=line):
        expect_spread(Moments("reference").joined(torch.full((4,), 7.0)))
    assert expect_spread(SEEN) == SEEN


def test_what_changes_nothing_is_named():
    assert ScoresConfig().idle().keys() == {"samples", "free_length"}
    assert ScoresConfig(normalise="running", length_penalty=0.1).idle().keys() == {"samples"}
    assert ScoresConfig(normalise="reference", length_penalty=0.1).idle() == {}


def test_the_first_moments_are_of_as_many_answers_as_are_asked_for():
    """In batches of 4, as many as are needed; those that are there already stay, those of another kind do not."""
    scores, config = torch.tensor([5.0, 1.0, 3.0, 8.0, -2.0, 0.0, 9.0, 4.0]), ScoresConfig("reference", samples=6)
    drawn = []

    def draw(number):
        drawn.append(number)
        return scores[4 * number : 4 * number + 4]

    found = first_moments(Moments("running", 3, 1.0, 1.0), config, draw)
    assert drawn == [0, 1]
    assert (found.of, found.seen) == ("reference", 6)
    assert found.mean == pytest.approx(2.5)
    assert found.deviation == pytest.approx(scores[:6].std(unbiased=False).item())
    assert first_moments(found, config, draw) is found
    assert first_moments(found, ScoresConfig("running"), draw) == Moments("running")
    assert first_moments(found, ScoresConfig(), draw) == Moments()
    assert first_moments(Moments(), ScoresConfig("reference", samples=4), draw).seen == 4
    assert drawn == [0, 1, 0]
    with pytest.raises(
        UserError, match=r"^model\.init_args\.scores\.normalise: found '2 answers of the reference that"
    ):
        first_moments(Moments(), ScoresConfig("reference", samples=2), lambda _: torch.ones(2))


def test_where_scores_have_no_spread_they_are_divided_by_1():
    assert Moments("running", 4, 2.0, 0.0).normalised(torch.tensor([2.0, 3.0])).tolist() == [0.0, 1.0]
