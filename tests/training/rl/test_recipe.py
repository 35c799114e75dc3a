"""The settings of PPO, held against one another. (Each group by itself: `test_settings`.)"""

import pytest

from gpt_modules.backbone import LoRAConfig
from gpt_modules.errors import UserError
from gpt_modules.training import PPOModule
from gpt_modules.training.rl.estimators import EstimatorConfig
from gpt_modules.training.rl.rewards import RewardSource
from gpt_modules.training.rl.scores import ScoresConfig
from gpt_modules.training.rl.settings import ClipConfig, CriticConfig, EarlyStop, EMAConfig, SamplingConfig


def recipe(**given):
    return PPOModule("policy", **{"rewards": "reward", **given}).recipe


def test_the_reference_is_the_policy_that_the_run_begins_with_or_another():
    assert recipe().reference == "policy"
    assert recipe(reference_from="sft").reference == "sft"


@pytest.mark.parametrize(
    ("given", "beside"),
    [
        ({}, ["critic"]),
        ({"estimator": EstimatorConfig("rloo")}, []),
        ({"ema": EMAConfig()}, ["critic", "ema"]),
        ({"ema": EMAConfig(export="instead")}, ["critic"]),
        ({"lora": LoRAConfig(2)}, ["critic", "adapter"]),
    ],
)
def test_what_is_written_beside_the_export(given, beside):
    assert PPOModule("policy", "reward", **given).also_exports == recipe(**given).also_exports == beside


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            {"max_new_tokens": 8, "sampling": SamplingConfig(truncate_after=8)},
            r"sampling\.truncate_after: found 8, expected less than max_new_tokens: 8",
        ),
        ({"lora": LoRAConfig(2, dropout=0.1)}, r"lora\.dropout: found 0\.1, expected 0: "),
        ({"lora": LoRAConfig(2), "ema": EMAConfig()}, "ema: found beside lora, expected one of them: "),
        (
            {"clip": ClipConfig(value_coef=0.0), "critic": CriticConfig(warmup=1)},
            r"critic\.warmup: found 1, expected it left at 0: clip\.value_coef is 0",
        ),
        (
            {"estimator": EstimatorConfig("grpo"), "critic": CriticConfig(warmup=1)},
            r"critic\.warmup: found 1, expected it left at 0: estimator\.name is grpo, which has no critic",
        ),
        (
            {"max_new_tokens": 8, "scores": ScoresConfig(length_penalty=0.1, free_length=8)},
            r"scores\.free_length: found 8, expected less than max_new_tokens: 8, or no answer costs anything",
        ),
        (
            {"ppo_epochs": 1, "early_stop": EarlyStop(kl=0.1)},
            r"early_stop\.kl: found 0\.1, expected it left at None: ppo_epochs x minibatches is 1, and an iteration's",
        ),
        (
            {"ppo_epochs": 1, "clip": ClipConfig(0.3)},
            r"clip\.ratio: found 0\.3, expected it left at 0\.2: ppo_epochs x",
        ),
        (
            {"whiten_over": "minibatch", "minibatches": 1},
            "whiten_over: found 'minibatch', expected it left at 'rollout': minibatches is 1, the rollout itself",
        ),
        (
            {"rewards": [RewardSource(function="m:f", weight=0.0)]},
            r"rewards\.weight: found \[0\.0\], expected one that is not 0",
        ),
        (
            {"monitors": {"words": RewardSource(function="m:f", weight=0.0)}},
            r"monitors\.words\.weight: found \[0\.0\], expected one that is not 0",
        ),
        ({"minibatches": 0}, r"minibatches: found 0, expected a whole number in \[1, inf\)"),
        ({"cache_gb": 0.0}, r"cache_gb: found 0\.0, expected a number in \(0, inf\)"),
    ],
)
def test_what_does_not_agree_is_refused(given, line):
    with pytest.raises(UserError, match=f"^{line}"):
        recipe(**given)


def test_one_term_of_several_may_weigh_nothing():
    rewards = [RewardSource(function="m:f", weight=0.0), RewardSource(function="m:g", weight=-1.0)]
    assert [source.weight for source in recipe(rewards=rewards).rewards] == [0.0, -1.0]
