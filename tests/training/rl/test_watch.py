"""The line where the reward has no say, and what the progress bar shows."""

import logging
import math
import re

import pytest
from lightning_utilities.core.rank_zero import rank_zero_only

from gpt_modules.errors import UserError
from gpt_modules.training.rl.settings import CriticConfig
from gpt_modules.training.rl.watch import RolloutWatch, refuse_idle_policy

AGREEING = {"sampler/kl": 1e-6, "sampler/max_prob_error": 1e-5}


def numbers(ended):
    return {"objective/score": 1.5, "objective/kl": 0.5, "response/ended": ended, **AGREEING}


def test_score_and_kl_are_shown():
    watch = RolloutWatch(8, -1.0)
    watch.look(numbers(1.0), 40)
    assert watch.shown == {"score": 1.5, "kl": 0.5}


@pytest.mark.parametrize(
    ("ended", "score", "rank", "told"), [(0.025, -1.0, 0, 1), (0.05, -1.0, 0, 0), (0.0, None, 0, 0), (0.0, -1.0, 1, 0)]
)
def test_a_rollout_in_which_nothing_ends_is_told_once_by_one_process(caplog, monkeypatch, ended, score, rank, told):
    monkeypatch.setattr(rank_zero_only, "rank", rank, raising=False)
    watch = RolloutWatch(8, score)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            watch.look(numbers(ended), 40)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == told
    assert all("1 of 40 responses ended; the others score -1.0" in line for line in lines)


@pytest.mark.parametrize(("kl", "told"), [(2e-3, 1), (1e-3, 0), (0.0, 0)])
def test_a_sampler_that_draws_from_another_distribution_is_told_once(caplog, kl, told):
    watch = RolloutWatch(8, None)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            watch.look({**numbers(1.0), "sampler/kl": kl, "sampler/max_prob_error": 0.25}, 40)
    begins = "sampler/kl: found 0.002 nats a token between sampler and policy (a probability differs by up to 0.25)"
    assert [message.startswith(begins) for message in caplog.messages] == [True] * told


@pytest.mark.parametrize(("share", "told"), [(1.0, 1), (0.99, 0), (None, 0)])
def test_answers_that_all_score_alike_are_told_once(caplog, share, told):
    watch = RolloutWatch(8, None)
    found = numbers(1.0) | ({} if share is None else {"objective/groups_without_spread": share})
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            watch.look(found, 40)
    assert [line.startswith("objective/groups_without_spread: the answers to each") for line in caplog.messages] == [
        True
    ] * told


@pytest.mark.parametrize("iterations", [1, 2])
def test_a_warmup_that_the_run_does_not_outlast_is_refused(iterations):
    line = f"critic.warmup: found 2, expected less than the run's {iterations} iterations, or the policy never learns"
    with pytest.raises(UserError, match=f"^{line}; "):
        refuse_idle_policy(2, iterations)


@pytest.mark.parametrize("iterations", [0, 3, math.inf])
def test_any_other_is_not(iterations):
    """A run without a step measures alone."""
    refuse_idle_policy(2, iterations)


# --- in a run ---


@pytest.mark.parametrize("trainer", [{"max_epochs": 1}, {"max_epochs": 9, "max_steps": 4}])
def test_it_is_refused_before_the_first_step_by_the_iterations_that_are_to_be(fit, ppo, trainer):
    """Of four steps each: a bound on steps may end the run in the warm-up, too."""
    with pytest.raises(UserError, match=r"^critic\.warmup: found 1, expected less than the run's 1 iterations"):
        fit(*ppo(ppo_epochs=2, minibatches=2, critic=CriticConfig(warmup=1)), **trainer)


def test_that_no_answer_ends_is_told_once(fit, ppo, caplog):
    """Of one token each, hardly any does; the reward is asked for nothing."""
    fit(*ppo(episodes=16, max_new_tokens=1, missing_eos_score=-3.0), max_epochs=3, limit_val_batches=0)
    (line,) = [message for message in caplog.messages if message.startswith("missing_eos_score")]
    assert re.match(r"missing_eos_score: 0 of 16 responses ended; the others score -3\.0, whatever .*: 1, a", line)
    caplog.clear()
    fit(*ppo(episodes=16, max_new_tokens=1, missing_eos_score=None), limit_val_batches=0)
    assert not [message for message in caplog.messages if message.startswith("missing_eos_score")]
