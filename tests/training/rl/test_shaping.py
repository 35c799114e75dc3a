"""From scores to advantages, on rollouts small enough to be worked by hand."""

import math

import lightning.pytorch as L
import pytest
import torch
from ppo_variants import adam
from torch.utils._pytree import tree_map

from gpt_modules.errors import UserError
from gpt_modules.training.ppo import VALIDATION
from gpt_modules.training.rl.estimators import EstimatorConfig
from gpt_modules.training.rl.rollout import Scored
from gpt_modules.training.rl.scores import Moments, ScoresConfig
from gpt_modules.training.rl.sequences import Sequences
from gpt_modules.training.rl.settings import (
    KLConfig,
    Shaping,
)
from gpt_modules.training.rl.shaping import (
    Cut,
    Rollout,
    expect_enough,
    optimised_scores,
    over_processes,
    response_statistics,
    rollout_statistics,
    shape_rollout,
    whitened_alone,
)

PLAIN = {"whiten_rewards": False, "whiten_advantages": False}
# Three answers of 3, 1 and 2 tokens; the second did not end. Their KLs are 0.5, -1 and 0.25 nats.
MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]]).bool()
KL = torch.tensor([[0.5, -0.25, 0.25], [-1.0, 9.0, 9.0], [0.0, 0.25, 9.0]])
# The sampler's probabilities are the policy's but for the first: half of it; and whatever where nothing counts.
SAMPLED = torch.where(MASK, KL - 7.0, 50.0) - torch.tensor([[2.0, 1.0, 1.0], [1.0] * 3, [1.0] * 3]).log()
VALUES = torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.0, 0.0], [-1.0, 1.0, 0.0]])


def rows_of(scored, rows):
    return tree_map(lambda field: None if field is None else field[rows], scored)


@pytest.fixture
def scored():
    lengths = MASK.sum(1)
    tokens = torch.arange(12).view(3, 4)
    ended = torch.tensor([True, False, True])
    scores = torch.tensor([4.0, 2.0, -3.0])
    entropy = torch.where(MASK, 0.5, 100.0)
    sequences = Sequences(tokens, torch.ones(3, dtype=torch.long), lengths + 1, ended, torch.arange(3))
    logprobs = (KL - 7.0, torch.full((3, 3), -7.0))
    return Scored(
        sequences, tokens[:, 1:], MASK, *logprobs, entropy, scores, torch.zeros(3, 0), SAMPLED, scores[:, None]
    )


def test_a_missing_end_replaces_the_score_and_the_score_lands_on_the_last_token(scored):
    _, rewards = shape_rollout(scored, VALUES, 0.0, Shaping(missing_eos_score=-5.0, **PLAIN))
    assert rewards.tolist() == [[0.0, 0.0, 4.0], [-5.0, 0.0, 0.0], [0.0, -3.0, 0.0]]
    assert optimised_scores(scored, Shaping(missing_eos_score=None)).tolist() == [4.0, 2.0, -3.0]
    assert optimised_scores(scored, Shaping(missing_eos_score=0.0)).tolist() == [4.0, 0.0, -3.0]


def test_each_token_pays_for_its_own_kl(scored):
    _, rewards = shape_rollout(scored, VALUES, 2.0, Shaping(missing_eos_score=None, **PLAIN))
    assert rewards.tolist() == [[-1.0, 0.5, 3.5], [4.0, 0.0, 0.0], [0.0, -3.5, 0.0]]


def test_advantages_and_returns_by_hand(scored):
    """delta = r + gamma V' - V; A = delta + gamma lambda A'; with gamma 0.5 and lambda 0.5, no penalty."""
    rollout, _ = shape_rollout(scored, VALUES, 0.0, Shaping(0.5, 0.5, None, **PLAIN))
    deltas = [[0.5 * 2 - 1, 0.5 * 3 - 2, 4.0 - 3], [2.0 - 0.5], [0.5 * 1 + 1, -3.0 - 1]]
    for row, delta in enumerate(deltas):
        advantage = 0.0
        for t in reversed(range(len(delta))):
            advantage = delta[t] + 0.25 * advantage
            assert rollout.advantages[row, t].item() == advantage
            assert rollout.returns[row, t].item() == advantage + VALUES[row, t].item()
    assert not rollout.advantages[~MASK].any()
    assert not rollout.returns[~MASK].any()


def test_advantages_are_whitened_over_what_counts_and_returns_are_not(scored):
    raw, _ = shape_rollout(scored, VALUES, 0.1, Shaping(**PLAIN))
    white, _ = shape_rollout(scored, VALUES, 0.1, Shaping())
    counted = raw.advantages[MASK]
    expected = (counted - counted.mean()) / counted.std(unbiased=False)
    torch.testing.assert_close(white.advantages[MASK], expected)
    assert not white.advantages[~MASK].any()
    assert torch.equal(white.returns, raw.returns)


@pytest.mark.parametrize(("name", "first"), [("rloo", 6.0), ("grpo", 3.0 / (18**0.5 + 1e-4))])
def test_without_a_critic_an_answer_is_measured_by_the_other_to_its_prompt(scored, name, first):
    """The rewards of a prompt's two answers are their scores less twice their KLs: 3 and -3. Nothing is whitened, and
    no values are made up.
    """
    pair = rows_of(scored, torch.tensor([0, 2]))._replace(scores=torch.tensor([4.0, -2.5]))
    shaping = Shaping(missing_eos_score=None, estimator=EstimatorConfig(name))
    rollout, rewards = shape_rollout(pair, None, 2.0, shaping, 2)
    assert rewards.sum(1).tolist() == [3.0, -3.0]
    expected = torch.where(pair.mask, torch.tensor([[first], [-first]]), 0.0)
    torch.testing.assert_close(rollout.advantages, expected)
    assert rollout.present().keys() == set(Rollout._fields) - {"values", "returns", "ref_logprobs", "rewards"}
    statistics = rollout_statistics(pair, rollout, 2.0, shaping)
    assert not [name for name in statistics if name.startswith("value/")]
    in_order, none = over_processes(torch.tensor([1, 0]), pair, None)
    assert none is None
    assert torch.equal(in_order.scores, pair.scores.flip(0))


def test_whitened_rewards_keep_their_mean(scored):
    _, raw = shape_rollout(scored, VALUES, 0.1, Shaping(**PLAIN))
    _, white = shape_rollout(scored, VALUES, 0.1, Shaping(whiten_rewards=True))
    counted = raw[MASK]
    torch.testing.assert_close(white[MASK], (counted - counted.mean()) / counted.std(unbiased=False) + counted.mean())


@pytest.mark.parametrize("whiten_rewards", [False, True])
def test_a_minibatch_that_is_whitened_by_itself_is_as_a_rollout_of_its_own(scored, whiten_rewards):
    """Ziegler et al.'s code: of a minibatch, the rewards, then GAE, then the advantages. Whatever rows of it are asked
    for.
    """
    alone = Shaping(whiten_rewards=whiten_rewards, whiten_over="minibatch")
    whole, _ = shape_rollout(scored, VALUES, 0.1, alone)
    minibatch = torch.tensor([2, 0])
    of_two = rows_of(scored, minibatch)
    expected, _ = shape_rollout(of_two, VALUES[minibatch], 0.1, Shaping(whiten_rewards=whiten_rewards))
    text = expected.tokens.shape[1]
    for rows in ([2, 0], [0], [2]):
        found = whitened_alone(whole, Cut(torch.tensor(rows), text, 3), Cut(minibatch, text, 3), alone)
        own = expected.take(Cut(torch.tensor([[2, 0].index(row) for row in rows]), text, 3))
        for name in ("tokens", "values", "advantages", "returns"):
            torch.testing.assert_close(getattr(found, name), getattr(own, name), msg=name)
    plain, _ = shape_rollout(scored, VALUES, 0.1, Shaping(**PLAIN))
    assert torch.equal(whole.advantages, plain.advantages)
    assert torch.equal(whole.returns, plain.returns)


def test_few_episodes_are_not_whitened_by_themselves():
    expect_enough("rollout", 1)
    expect_enough("minibatch", 8)
    line = r"^model\.whiten_over: found 'minibatch', expected minibatches of at least 8 .*not of 7$"
    with pytest.raises(UserError, match=line):
        expect_enough("minibatch", 7)


def test_the_rollout_is_what_was_scored(scored):
    rollout, _ = shape_rollout(scored, VALUES, 0.1, Shaping())
    assert torch.equal(rollout.tokens, scored.sequences.tokens)
    assert torch.equal(rollout.responses, scored.responses)
    assert torch.equal(rollout.logprobs, scored.logprobs)
    assert torch.equal(rollout.values, VALUES)


@pytest.mark.parametrize("rows", [[0], [1, 0], [2], [0, 1, 2]])
def test_rows_that_are_taken_are_as_wide_as_they_are_said_to_be_and_whole(rows):
    """Texts of 3, 5 and 9 tokens, of which 1, 2 and 4 answer."""
    counts = torch.tensor([1, 2, 4])
    mask = torch.arange(6) < counts[:, None]
    cells = torch.arange(18.0).view(3, 6)
    others = [cells] * (len(Rollout._fields) - 4)
    whole = Rollout(torch.arange(36).view(3, 12), torch.tensor([2, 3, 5]), cells.long(), mask, *others)
    longest = max(rows)
    taken = whole.take(Cut(torch.tensor(rows), [3, 5, 9][longest], [1, 2, 4][longest]))
    assert taken.tokens.tolist() == whole.tokens[rows, : [3, 5, 9][longest]].tolist()
    assert taken.prompt_lengths.tolist() == whole.prompt_lengths[rows].tolist()
    assert all(cell.shape == (len(rows), [1, 2, 4][longest]) for cell in taken[2:])
    pairs = zip(taken[2:], whole[2:], strict=True)
    assert all(torch.equal(cell[taken.mask], field[rows][mask[rows]]) for cell, field in pairs)


def test_nothing_shaped_has_a_gradient(scored):
    policy = scored._replace(logprobs=scored.logprobs.requires_grad_())
    rollout, rewards = shape_rollout(policy, VALUES.clone().requires_grad_(), 0.1, Shaping())
    assert not any(field.requires_grad for field in (rewards, rollout.advantages, rollout.returns))


def test_score_optimised_score_and_reward_are_three_things(scored):
    found = response_statistics(scored, 2.0, Shaping(missing_eos_score=-5.0))
    assert found["score"].tolist() == [4.0, 2.0, -3.0]
    assert found["optimised_score"].tolist() == [4.0, -5.0, -3.0]
    assert found["kl"].tolist() == [0.5, -1.0, 0.25]
    assert found["reward"].tolist() == [3.0, -3.0, -3.5]
    assert found["length"].tolist() == [3.0, 1.0, 2.0]
    assert found["ended"].tolist() == [1.0, 0.0, 1.0]


def test_the_spreads_of_all_ensembles_are_summed_and_without_one_there_is_none(scored):
    apart = scored._replace(spreads=torch.tensor([[0.5, 1.0], [0.0, 0.0], [2.0, 1.0]]))
    assert response_statistics(apart, 2.0, Shaping())["reward_spread"].tolist() == [1.5, 0.0, 3.0]
    rollout, _ = shape_rollout(apart, VALUES, 2.0, Shaping())
    assert rollout_statistics(apart, rollout, 2.0, Shaping())["objective/reward_spread"].item() == 1.5
    assert "reward_spread" not in response_statistics(scored, 2.0, Shaping())


def test_statistics_of_a_rollout_by_hand(scored):
    """Over tokens that count; the reward is what it was before any whitening."""
    shaping = Shaping(1.0, 1.0, -5.0, whiten_rewards=True)
    rollout, _ = shape_rollout(scored, VALUES, 2.0, shaping)
    found = {name: float(value) for name, value in rollout_statistics(scored, rollout, 2.0, shaping).items()}
    returns = rollout.returns[MASK]
    unexplained = (returns - VALUES[MASK]).var(unbiased=False) / returns.var(unbiased=False)
    assert found == pytest.approx(
        {
            "objective/score": 1.0,
            "objective/score_std": torch.tensor([4.0, 2.0, -3.0]).std(unbiased=False).item(),
            "objective/optimised_score": -4 / 3,
            "objective/reward": -3.5 / 3,
            "objective/kl": -0.25 / 3,
            "objective/entropy": 0.5,
            "response/length": 2.0,
            "response/ended": 2 / 3,
            "value/explained_variance": 1 - unexplained.item(),
            "value/returns": returns.mean().item(),
            # The ids are 1 2 3, 5, 9 10: all different, 3 pairs; in threes and fours none is said twice.
            "response/repetition": 0.0,
            "response/distinct_1": 1.0,
            "response/distinct_2": 3 / 6,
            "response/length_p10": 1.2,
            "response/length_p50": 2.0,
            "response/length_p90": 2.8,
            # Once half the probability: d = -log 2, and exp(-d) - 1 + d = 1 - log 2, of six tokens.
            "sampler/kl": (1 - math.log(2)) / 6,
            "sampler/max_prob_error": 0.5 * math.exp(0.5 - 7),
        }
    )


def test_episodes_come_in_the_order_of_their_numbers(scored):
    shuffled, values = over_processes(torch.tensor([2, 0, 1]), scored, VALUES)
    assert shuffled.scores.tolist() == [2.0, -3.0, 4.0]
    assert torch.equal(values, VALUES[[1, 2, 0]])
    assert torch.equal(shuffled.sequences.tokens, scored.sequences.tokens[[1, 2, 0]])


@pytest.mark.parametrize(
    ("found", "scores", "coef", "given"),
    [
        ("rewards: found 1e+30", [1e30, 2.0, -3.0], 0.1, {"missing_eos_score": -1e31}),
        (
            "scores.length_penalty: found 2e+30",
            [4.0, 2.0, -3.0],
            0.1,
            {"scores": ScoresConfig(None, length_penalty=1e30, free_length=1)},
        ),
        ("missing_eos_score: found 1e+30", [4.0, 2.0, -3.0], 0.1, {"missing_eos_score": -1e30}),
        ("kl.coef: found 6.5e+30", [4.0, 2.0, -3.0], 1e30, {}),
    ],
)
def test_what_overflows_is_told_by_what_made_it(scored, found, scores, coef, given):
    """Whitened, rewards of 1e30 would be advantages of 0; unwhitened, the losses would be infinite. Of 3, 1 and 2
    tokens one is free; the KLs are 6.5, 1 and 4.25; and where all answers ended, no score of a missing end is paid.
    """
    scored = scored._replace(scores=torch.tensor(scores), ref_logprobs=torch.full((3, 3), -9.0))
    if found.startswith("rewards"):
        scored = scored._replace(sequences=scored.sequences._replace(ended=torch.ones(3).bool()))
    line = f"model.{found} of an answer, expected numbers whose squares float32 can sum"
    for shaping in (Shaping(**PLAIN, **given), Shaping(estimator=EstimatorConfig("rloo"), **given)):
        with pytest.raises(UserError) as refused:
            shape_rollout(scored, VALUES if shaping.estimator.has_critic else None, coef, shaping, answers=3)
        assert str(refused.value) == line


def test_large_scores_that_are_normalised_are_not_large(scored):
    moments = Moments("reference", 2, 1e30, 2e60)
    shaping = Shaping(scores=ScoresConfig("reference"), moments=moments, missing_eos_score=None, **PLAIN)
    rollout, _ = shape_rollout(scored._replace(scores=scored.scores * 1e30), VALUES, 0.0, shaping)
    assert rollout.returns.sum(1).tolist() != [0.0] * 3


def statistics(scored, shaping, answers, terms=()):
    rollout, _ = shape_rollout(scored, None if not shaping.estimator.has_critic else VALUES, 0.0, shaping, answers)
    return {
        name: float(value) for name, value in rollout_statistics(scored, rollout, 0.0, shaping, answers, terms).items()
    }


def test_the_share_of_groups_whose_answers_are_optimised_alike(scored):
    """Four answers to two prompts; the second of the first group did not end, and the clip makes the last two alike."""
    four = rows_of(scored, torch.tensor([0, 1, 2, 2]))._replace(scores=torch.tensor([-1.0, 7.0, 3.0, 9.0]))
    name, grpo = "objective/groups_without_spread", EstimatorConfig("grpo")
    for shaping, share in (
        (Shaping(estimator=grpo), 0.5),
        (Shaping(estimator=grpo, missing_eos_score=None), 0.0),
        (Shaping(estimator=grpo, scores=ScoresConfig(clip=2.0)), 1.0),
        (Shaping(estimator=EstimatorConfig("rloo"), scores=ScoresConfig(clip=2.0)), 1.0),
    ):
        assert statistics(four, shaping, 2)[name] == share
    assert name not in statistics(scored, Shaping(**PLAIN), 1)


def test_what_became_of_the_scores_is_told(scored):
    """Scores 4, 2, -3 by a mean of 2 and a deviation of 4: a gain of 1/4, a bias of -1/2; -1.25 alone is beyond 1."""
    shaping = Shaping(scores=ScoresConfig("running", clip=1.0), moments=Moments("running", 2, 2.0, 32.0), **PLAIN)
    found = statistics(scored, shaping, 1, ["words"])
    expected = {"objective/score_gain": 0.25, "objective/score_bias": -0.5, "objective/clipped_scores": 1 / 3}
    expected |= {"objective/score/words": 1.0}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert not [
        name
        for name in statistics(scored, Shaping(**PLAIN), 1)
        if name.startswith(("objective/clip", "objective/score_g"))
    ]


# --- in a run ---


def test_logged_statistics_are_over_counted_tokens(fit, ppo):
    module, data = ppo(episodes=16)
    original, seen = module._score, []
    module._score = lambda *arguments: seen.append(original(*arguments)) or seen[-1]
    logged = {name: value for name, _, value in fit(module, data, limit_val_batches=0).logger.points}
    (scored,) = seen
    entropies = [value for row, keep in zip(scored.entropy, scored.mask, strict=True) for value in row[keep].tolist()]
    assert len(entropies) < scored.mask.numel()
    assert logged["objective/entropy"] == pytest.approx(sum(entropies) / len(entropies), abs=1e-4)
    assert logged["response/length"] == pytest.approx(len(entropies) / 16)
    assert logged["response/ended"] == pytest.approx(scored.ended.float().mean().item())
    assert logged["objective/score"] == pytest.approx(scored.scores.mean().item(), abs=1e-4)


class Kept(L.Callback):
    """The rollout of the first iteration, and what it was shaped from."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        Kept.rollout = module.rollout
        prompts = trainer.datamodule.prompts(0)
        Kept.scored = module._score(prompts, VALIDATION + 1)


def test_the_recipes_numbers_reach_the_rollout(fit, ppo):
    """A reference that is another model: the penalty is there from the first iteration. With lambda 1 a return is the
    discounted sum of what is to come, whatever the critic says: the score at the end, less 0.5 for each nat.
    """
    returns = {}
    for name, changes in {"free": {}, "paid": {"kl": KLConfig(coef=0.5)}, "white": {"whiten_rewards": True}}.items():
        usual = {"kl": KLConfig(coef=0.0), "gamma": 0.5, "lam": 1.0, "missing_eos_score": -3.0}
        module, data = ppo(**{**usual, **changes})
        module.configure_model()
        with torch.no_grad():
            for parameter in module.policy.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        trainer = fit(module, data, max_epochs=1, limit_val_batches=0, callbacks=[Kept()])
        returns[name] = Kept.rollout.returns
        assert abs(trainer.logger.values("objective/kl")[0]) > 1e-3
    scored = Kept.scored
    assert 0 < scored.ended.sum() < len(scored.ended)
    for row, length in enumerate(scored.mask.sum(1).tolist()):
        score = scored.scores[row].item() if scored.ended[row] else -3.0
        nats = (scored.logprobs - scored.ref_logprobs)[row].tolist()
        for t in range(length):
            free = 0.5 ** (length - 1 - t) * score
            penalty = 0.5 * sum(0.5 ** (later - t) * nats[later] for later in range(t, length))
            assert returns["free"][row, t].item() == pytest.approx(free, abs=1e-3)
            assert returns["paid"][row, t].item() == pytest.approx(free - penalty, abs=1e-3)
    assert not torch.allclose(returns["white"], returns["free"])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_minibatches_that_are_whitened_by_themselves_have_their_own_mean_advantage(fit, ppo, accumulate):
    """At ratio 1 a policy's loss is minus the mean of its advantages: 0 for each minibatch, whatever its micro-batches,
    and not so where all are whitened together.
    """

    def losses(**how):
        module, data = ppo(episodes=32, minibatches=2, optimizer=adam(0.0), **how)
        return fit(module, data, limit_val_batches=0, accumulate_grad_batches=accumulate).logger.values("loss/policy")

    assert losses(whiten_over="minibatch") == pytest.approx([0.0, 0.0], abs=1e-5)
    assert max(map(abs, losses())) > 1e-3
    with pytest.raises(UserError, match=r"^model\.whiten_over: found 'minibatch', expected minibatches of at least 8 "):
        fit(*ppo(episodes=8, minibatches=2, whiten_over="minibatch"))
