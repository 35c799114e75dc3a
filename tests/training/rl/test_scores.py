"""From what a reward says to what is optimised, worked by hand and against NumPy."""

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from ppo_variants import FLAT, adam

from gpt_modules.errors import UserError
from gpt_modules.training.ppo import VALIDATION
from gpt_modules.training.rl.scores import Moments, ScoresConfig, expect_spread, first_moments, optimised
from gpt_modules.training.rl.settings import EMAConfig, KLConfig

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
    line = r"^model\.scores\.normalise: found '4 answers of the reference that all score 7', expected scores"
    with pytest.raises(UserError, match=line):
        expect_spread(Moments("reference").joined(torch.full((4,), 7.0)))
    close = Moments("reference").joined(torch.tensor([7.0, 7.1]))
    assert expect_spread(close) == close


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
    with pytest.raises(UserError, match=r"^model\.scores\.normalise: found '2 answers of the reference that"):
        first_moments(Moments(), ScoresConfig("reference", samples=2), lambda _: torch.ones(2))


def test_where_scores_have_no_spread_they_are_divided_by_1():
    assert Moments("running", 4, 2.0, 0.0).normalised(torch.tensor([2.0, 3.0])).tolist() == [0.0, 1.0]


# --- in a run ---


def test_the_references_answers_score_nought_with_variance_one_and_the_critic_follows(fit, ppo):
    """Ziegler et al. 2019, 2.2. Before the first validation; the score that is logged is the reward's own."""
    config = ScoresConfig(normalise="reference", samples=20)
    module, data = ppo(scores=config, missing_eos_score=None, optimizer=adam(0.0))
    trainer = fit(module, data, max_epochs=1)
    moments, scores = module.shaping.moments, []
    for number in range(3):
        scores.append(module._score(data.prompts(number), 2**31 + number, module.frozen.reference).scores)
    whole = torch.cat(scores)[:20].double()
    assert (moments.of, moments.seen) == ("reference", 20)
    assert moments.mean == pytest.approx(whole.mean().item(), rel=1e-5)
    assert moments.deviation == pytest.approx(whole.std(unbiased=False).item(), rel=1e-4)
    for stage in ("objective", "val"):
        score, optimised = (trainer.logger.values(f"{stage}/{name}")[-1] for name in ("score", "optimised_score"))
        assert optimised == pytest.approx((score - moments.mean) / moments.deviation, abs=1e-4)
        assert abs(score - optimised) > 0.1
    scored = module._score(data.prompts(0), 1)
    ends = scored.sequences.lengths[:, None] - 1
    with torch.no_grad():
        last = module.critic.eval().token_values(scored.sequences.tokens).gather(1, ends)[:, 0]
    torch.testing.assert_close(last, moments.normalised(scored.scores), atol=1e-3, rtol=1e-3)
    assert module.frontier[-1][1] == pytest.approx(trainer.logger.values("val/score")[-1])


def test_running_moments_are_of_all_rollouts_so_far(fit, ppo):
    module, data = ppo(scores=ScoresConfig(normalise="running"), missing_eos_score=None, optimizer=adam(1e-2))
    score, seen = module._score, []

    def watched(batch, draw, policy=None):
        found = score(batch, draw, policy)
        seen.extend([found.scores] if draw != VALIDATION else [])
        return found

    module._score = watched
    trainer = fit(module, data, max_epochs=3)
    whole = torch.cat(seen).double()
    moments = module.shaping.moments
    assert (moments.seen, len(seen)) == (24, 3)
    assert moments.mean == pytest.approx(whole.mean().item())
    assert moments.deviation == pytest.approx(whole.std(unbiased=False).item())
    first = trainer.logger.values("objective/optimised_score")[0]
    assert first == pytest.approx(0.0, abs=1e-5), "of its own moments, the present rollout among them"


def test_before_the_first_rollout_running_moments_have_no_scale(fit, ppo):
    """What validation says of optimised scores then would be of other units than all that follows."""
    shaped = {f"val/{prefix}{name}" for prefix in ("", "ema/") for name in ("optimised_score", "reward")}

    class Told(L.Callback):
        def on_validation_end(self, trainer, module):
            self.names = [*getattr(self, "names", []), {"val/score", *shaped} & {*trainer.callback_metrics}]

    for normalise, before in (("running", set()), ("reference", shaped), (None, shaped)):
        module, data = ppo(scores=ScoresConfig(normalise=normalise), ema=EMAConfig())
        fit(module, data, num_sanity_val_steps=-1, callbacks=[told := Told()])
        assert told.names == [{"val/score", *before}, {"val/score", *shaped}]


def test_a_clip_and_a_length_penalty_reach_what_is_optimised(fit, ppo):
    module, data = ppo(scores=ScoresConfig(clip=0.5, length_penalty=0.25, free_length=2), missing_eos_score=None)
    trainer = fit(module, data, limit_val_batches=0)
    scored = module._score(data.prompts(0), 1)
    expected = scored.scores.clamp(-0.5, 0.5) - 0.25 * (scored.mask.sum(1) - 2).clamp_min(0)
    assert trainer.logger.values("objective/optimised_score") == [pytest.approx(expected.mean().item(), abs=1e-5)]
    assert trainer.logger.values("objective/score") == [pytest.approx(scored.scores.mean().item(), abs=1e-5)]


def test_score_is_not_what_is_optimised_and_both_are_logged(fit, ppo, functions):
    """Some answers are cut off: the reward is a length, and theirs is replaced by -20. Of the second iteration, whose
    policy has moved.
    """
    settings = {"missing_eos_score": -20.0, "kl": KLConfig(coef=0.5), "optimizer": adam(3e-3), "schedule": FLAT}
    module, data = ppo(episodes=32, rewards="toy_rewards:length", **settings)
    data.validation_fraction = 0.3
    points = {name: value for name, _, value in fit(module, data, max_epochs=2).logger.points}
    names = ("score", "optimised_score", "reward", "kl")
    for stage, room in (("objective", "response"), ("val", "val")):
        score, optimised, reward, kl = (points[f"{stage}/{name}"] for name in names)
        assert 0.1 < points[f"{room}/ended"] < 0.9
        assert optimised < 0 < score
        assert abs(kl) > 0.01
        assert reward == pytest.approx(optimised - 0.5 * kl, abs=1e-4)
