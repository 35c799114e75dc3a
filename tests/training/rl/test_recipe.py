"""The settings of PPO, held against one another. (Each group by itself: `test_settings`.)"""

import pytest

from gpt_modules.backbone import LoRAConfig
from gpt_modules.errors import UserError
from gpt_modules.training import PPOModule
from gpt_modules.training.rl.estimators import EstimatorConfig
from gpt_modules.training.rl.settings import ClipConfig, CriticConfig, EMAConfig, SamplingConfig


def recipe(**given):
    return PPOModule("policy", "reward", **given).recipe


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
        ({"minibatches": 0}, r"minibatches: found 0, expected a whole number in \[1, inf\)"),
        ({"cache_gb": 0.0}, r"cache_gb: found 0\.0, expected a number in \(0, inf\)"),
    ],
)
def test_what_does_not_agree_is_refused(given, line):
    with pytest.raises(UserError, match=f"^{line}"):
        recipe(**given)
