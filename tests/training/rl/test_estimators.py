"""Advantages of answers to the same prompt, and what a recipe cannot say where there is no critic."""

import pytest
import torch

from gpt_modules.errors import UserError
from gpt_modules.training import PPOModule
from gpt_modules.training.hyperparameters import refuse_idle
from gpt_modules.training.rl.estimators import EstimatorConfig, group_advantages
from gpt_modules.training.rl.settings import ClipConfig, CriticConfig

WITHOUT = [EstimatorConfig("rloo"), EstimatorConfig("grpo")]
# Two prompts of two answers; what does not count is not there.
MASK = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]]).bool()
REWARDS = torch.tensor([[-0.5, 2.5, torch.nan], [6.0, 9.0, 9.0], [0.25, 0.25, 0.5], [0.5, 0.5, torch.inf]])


@pytest.mark.parametrize(
    ("config", "first"),
    [
        (EstimatorConfig("rloo"), 4.0),
        (EstimatorConfig("grpo", divide_by_std=False), 2.0),
        (EstimatorConfig("grpo"), 2 / (8**0.5 + 1e-4)),
    ],
)
def test_an_answer_is_one_action_whose_reward_is_the_sum_of_its_tokens(config, first):
    """2 and 6 to the first prompt; 1 and 1 to the second, which teach nothing."""
    found = group_advantages(REWARDS, MASK, config, 2)
    expected = torch.tensor([[-first, -first, 0.0], [first, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("config", WITHOUT)
def test_an_answer_needs_another(config):
    config.expect_answers(2)
    EstimatorConfig().expect_answers(1)
    with pytest.raises(UserError) as refused:
        config.expect_answers(1)
    assert str(refused.value) == (
        "data.init_args.answers: found 1, expected at least 2 with model.init_args.estimator.name: "
        f"{config.name}, by which an answer is measured by the others to its prompt"
    )


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"lam": 0.9}, "lam: found 0.9, expected it left at 0.95: "),
        ({"gamma": 0.99}, "gamma: found 0.99, expected it left at 1.0: "),
        ({"whiten_rewards": True}, "whiten_rewards: found True, expected it left at False: "),
        ({"clip": ClipConfig(value=0.5)}, "clip.value: found 0.5, expected it left at 0.2: "),
        ({"clip": ClipConfig(value_coef=0.5)}, "clip.value_coef: found 0.5, expected it left at 0.1: "),
        ({"critic": CriticConfig(lr=1e-5)}, "critic.lr: found 1e-05, expected it left at None: "),
        (
            {"critic": CriticConfig(init_from="runs/reward")},
            "critic.init_from: found 'runs/reward', expected it left at None: ",
        ),
    ],
)
@pytest.mark.parametrize("config", WITHOUT)
def test_what_only_a_critic_has_an_effect_by_is_refused_without_one(config, given, line):
    PPOModule("policy", "reward", **given)
    with pytest.raises(UserError) as refused:
        PPOModule("policy", "reward", estimator=config, **given)
    assert str(refused.value) == f"{line}estimator.name is {config.name}, which has no critic"


@pytest.mark.parametrize("config", WITHOUT)
def test_what_a_policy_has_an_effect_by_is_taken_without_a_critic(config):
    PPOModule("policy", "reward", estimator=config, clip=ClipConfig(0.1, ratio_high=0.3))


def test_the_variants_of_grpo_are_its_own():
    for name in ("gae", "rloo"):
        for variant in ({"divide_by_std": False}, {"mean_over": "tokens"}):
            with pytest.raises(UserError, match=rf"^estimator\.{next(iter(variant))}: .*estimator.name is {name}, and"):
                refuse_idle(PPOModule, estimator=EstimatorConfig(name, **variant))
    refuse_idle(PPOModule, estimator=EstimatorConfig("grpo", False, "tokens"))
    averages = [EstimatorConfig(name).averages_answers for name in ("gae", "rloo", "grpo")]
    assert [*averages, EstimatorConfig("grpo", mean_over="tokens").averages_answers] == [False, False, True, False]
    assert [EstimatorConfig(name).has_critic for name in ("gae", "rloo", "grpo")] == [True, False, False]
