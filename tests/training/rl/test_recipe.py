"""The settings of PPO, held against one another. (Each group by itself: `test_settings`.)"""

import inspect
import math
import re

import pytest

from gpt_modules.backbone import LoRAConfig
from gpt_modules.errors import UserError
from gpt_modules.training import PPOModule
from gpt_modules.training.optimizers import OptimizerConfig
from gpt_modules.training.rl.estimators import EstimatorConfig
from gpt_modules.training.rl.rewards import RewardSource
from gpt_modules.training.rl.scores import ScoresConfig
from gpt_modules.training.rl.settings import ClipConfig, CriticConfig, EarlyStop, EMAConfig, KLConfig, SamplingConfig


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
        (
            {"gamma": 0.0, "lam": 0.5},
            r"lam: found 0\.5, expected it left at 0\.95: gamma is 0, so no later",
        ),
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


LATER = [{"early_stop": EarlyStop(kl=0.1)}, {"early_stop": EarlyStop(ratio=1.5)}]
LATER += [{"clip": ClipConfig(**{name: 0.3})} for name in ("ratio", "ratio_high", "value")]


@pytest.mark.parametrize("given", LATER, ids=str)
def test_what_only_a_second_step_of_a_rollout_follows_needs_one(given):
    for epochs, minibatches in ((2, 1), (1, 2), (2, 2)):
        recipe(ppo_epochs=epochs, minibatches=minibatches, **given)
    with pytest.raises(UserError, match=r"ppo_epochs x minibatches is 1, and an iteration's first step finds"):
        recipe(ppo_epochs=1, **given)


@pytest.mark.parametrize(("name", "value"), [("lr", 1), ("warmup", 1), ("max_norm", 1), ("lora", LoRAConfig(2))])
def test_what_moves_a_critic_needs_one_that_learns(name, value):
    moves = CriticConfig(**{name: value})
    recipe(critic=moves)
    with pytest.raises(
        UserError, match=rf"^critic\.{name}: found .*, expected .*: clip\.value_coef is 0, so the critic"
    ):
        recipe(critic=moves, clip=ClipConfig(value_coef=0.0))


def test_what_normalises_nothing_is_refused(ppo):
    with pytest.raises(
        UserError, match=r"^scores\.samples: found 9, expected it left at 256: scores\.normalise is not r"
    ):
        ppo(scores=ScoresConfig(samples=9, normalise="running"))


NUMBERS = [0, -1, math.nan, math.inf, 1e-38]


TAKEN = {
    "sample_prompts": {0},
    "seed": {0},
    "gamma": {0, 1e-38},
    "lam": {0, 1e-38},
    "missing_eos_score": {0, -1, 1e-38},
    "cache_gb": {1e-38},
}


@pytest.mark.parametrize("value", NUMBERS)
def test_every_number_of_the_constructor_is_checked(ppo, value):
    """By introspection, so that a new argument is asked about too."""
    for name, parameter in inspect.signature(PPOModule).parameters.items():
        numeric = {"int", "float", "int | None", "float | None"}
        kind = str(parameter.annotation)
        if kind not in numeric and parameter.annotation not in (int, float):
            continue
        if isinstance(value, float) and "int" in kind:
            continue  # the parser of recipes refuses it
        if value in TAKEN.get(name, ()):
            assert ppo(**{name: value})
            continue
        with pytest.raises(UserError, match=rf"^{name}: found {re.escape(str(value))}, expected ") as error:
            ppo(**{name: value})
        assert "\n" not in str(error.value)


def test_a_monitor_cannot_take_the_place_of_a_metric(ppo, functions):
    names = ("score_std", "letters", "kl", "distinct_1", "score/length", "ema/letters")
    monitors = dict.fromkeys(names, RewardSource(function="toy_rewards:length"))
    for name in ("distinct_1", "kl", "score_std", "score/length"):
        with pytest.raises(
            UserError, match=rf"^monitors\.{name}: found the name of a metric of PPO, expected another$"
        ):
            ppo(monitors={"letters": monitors["letters"], name: monitors[name]})
    assert ppo(monitors={"ema/letters": monitors["ema/letters"]})
    with pytest.raises(UserError, match=r"^monitors\.ema/letters: found the name of a metric of PPO"):
        ppo(monitors={"ema/letters": monitors["ema/letters"]}, ema=EMAConfig())


def test_the_defaults_are_those_of_the_rlhf_codes():
    """Adam's epsilon 1e-5, no decay, a rate that falls linearly to 0, no discount; four passes over a rollout at a
    temperature of 1; rewards as they are.
    """
    module = PPOModule("policy", "reward")
    assert module.recipe.optimizer == OptimizerConfig(lr=1e-5, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.0)
    usual = {"ppo_epochs": 4, "minibatches": 1, "temperature": 1.0, "whiten_rewards": False, "compile": False}
    assert {name: module.hparams[name] for name in usual} == usual
    assert (module.hparams["max_new_tokens"], module.hparams["seed"]) == (24, 0)
    assert (module.recipe.schedule.shape, module.recipe.schedule.final) == ("linear", 0.0)
    assert (module.shaping.gamma, module.shaping.lam, module.shaping.missing_eos_score) == (1.0, 0.95, -1.0)


def test_only_an_adapted_coefficient_is_learnt(ppo):
    assert ppo(kl=KLConfig(target=6.0))[0].learned_settings == {"kl.coef"}
    assert ppo(kl=KLConfig())[0].learned_settings == set()
