"""What a recipe says of PPO as a whole: its groups of settings, and what they must be to one another."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gpt_modules.backbone import LoRAConfig
from gpt_modules.errors import UserError, expect
from gpt_modules.training.hyperparameters import SEEDS, expect_idle, expect_number, refuse_idle, typed
from gpt_modules.training.lora import ADAPTER
from gpt_modules.training.optimizers import OptimizerConfig, ScheduleConfig
from gpt_modules.training.rl.estimators import EstimatorConfig
from gpt_modules.training.rl.rewards import RewardSource, expect_weight, reward_sources
from gpt_modules.training.rl.scores import ScoresConfig
from gpt_modules.training.rl.settings import (
    ClipConfig,
    CriticConfig,
    EarlyStop,
    EMAConfig,
    KLConfig,
    PtxConfig,
    SamplingConfig,
    Shaping,
    expect_no_dropout,
)


@dataclass(frozen=True)
class Recipe:
    """The groups of settings of a run, see the arguments of `PPOModule`; `shaping` has those that make advantages of
    scores.
    """

    init_from: str
    reference: str
    rewards: list[RewardSource]
    monitors: dict[str, RewardSource]
    sampling: SamplingConfig
    kl: KLConfig
    clip: ClipConfig
    critic: CriticConfig
    ptx: PtxConfig
    ema: EMAConfig | None
    early_stop: EarlyStop
    lora: LoRAConfig | None
    shaping: Shaping
    optimizer: OptimizerConfig
    schedule: ScheduleConfig

    @property
    def estimator(self) -> EstimatorConfig:
        """What makes advantages."""
        return self.shaping.estimator

    @property
    def averages_beside(self) -> list[str]:
        """Names of the averages that are written beside the policy."""
        return ["ema"] if self.ema is not None and self.ema.export == "beside" else []

    @property
    def also_exports(self) -> list[str]:
        """Folders beside `export`, by the ends of their names."""
        critic = ["critic"] if self.estimator.has_critic else []
        return [*critic, *self.averages_beside, *([] if self.lora is None else [ADAPTER])]


def read_recipe(module: object, given: Mapping[str, Any], owner: Callable[..., Any]) -> Recipe:
    """The groups of `given`.

    Args:
        module: whose constructor's defaults are nobody's wish.
        given: the arguments of `owner`, `PPOModule`.

    Raises:
        UserError: a setting means nothing, by itself or beside the others.
    """
    _expect_numbers(given)
    recipe = Recipe(
        init_from=given["init_from"],
        reference=given["init_from"] if given["reference_from"] is None else given["reference_from"],
        rewards=reward_sources(given["rewards"]),
        monitors={name: typed(RewardSource, source) for name, source in (given["monitors"] or {}).items()},
        sampling=typed(SamplingConfig, given["sampling"]),
        kl=typed(KLConfig, given["kl"]),
        clip=typed(ClipConfig, given["clip"]),
        critic=typed(CriticConfig, given["critic"]),
        ptx=typed(PtxConfig, given["ptx"]),
        ema=None if given["ema"] is None else typed(EMAConfig, given["ema"]),
        early_stop=typed(EarlyStop, given["early_stop"]),
        lora=None if given["lora"] is None else typed(LoRAConfig, given["lora"]),
        shaping=_shaping(given),
        optimizer=typed(OptimizerConfig, given["optimizer"]),
        schedule=typed(ScheduleConfig, given["schedule"]),
    )
    _expect_agreement(recipe, given["max_new_tokens"])
    _refuse_of_later_steps(recipe, given["ppo_epochs"], given["minibatches"])
    refuse_idle(module, optimizer=recipe.optimizer, schedule=recipe.schedule, scores=recipe.shaping.scores)
    refuse_idle(module, kl=recipe.kl, clip=recipe.clip, ptx=recipe.ptx, estimator=recipe.estimator)
    recipe.estimator.refuse_of_a_critic(given, owner)
    _refuse_of_a_critic_at_rest(recipe)
    return recipe


def _expect_numbers(given: Mapping[str, Any]) -> None:
    """Of those that stand in no group."""
    for name in ("max_new_tokens", "ppo_epochs", "minibatches", "score_rows"):
        expect_number(name, given[name], "[1, inf)", whole=True)
    expect_number("sample_prompts", given["sample_prompts"], "[0, inf)", whole=True)
    expect_number("seed", given["seed"], SEEDS, whole=True)
    expect_number("temperature", given["temperature"], "[0.001, inf)")
    expect_number("cache_gb", given["cache_gb"], "(0, inf)")


def _shaping(given: Mapping[str, Any]) -> Shaping:
    names = ("gamma", "lam", "missing_eos_score", "whiten_rewards", "whiten_over")
    groups = {"scores": typed(ScoresConfig, given["scores"]), "estimator": typed(EstimatorConfig, given["estimator"])}
    return Shaping(**{name: given[name] for name in names}, **groups)


def _expect_agreement(recipe: Recipe, max_new_tokens: int) -> None:
    after = recipe.sampling.truncate_after
    expect(after < max_new_tokens, "sampling.truncate_after", after, f"less than max_new_tokens: {max_new_tokens}")
    scores, free = recipe.shaping.scores, f"less than max_new_tokens: {max_new_tokens}, or no answer costs anything"
    expect(
        not scores.length_penalty or scores.free_length < max_new_tokens, "scores.free_length", scores.free_length, free
    )
    if recipe.shaping.gamma == 0:
        expect_idle("lam", recipe.shaping.lam, [Shaping().lam], "gamma is 0, so no later reward counts")
    expect_weight("rewards", recipe.rewards)
    for name, monitor in recipe.monitors.items():
        expect_weight(f"monitors.{name}", [monitor])
    expect_no_dropout("lora", recipe.lora)
    if recipe.lora is not None and recipe.ema is not None:
        raise UserError("ema: found beside lora, expected one of them: averaged factors are no averaged weights")


def _refuse_of_later_steps(recipe: Recipe, epochs: int, minibatches: int) -> None:
    """What looks at how far the policy has come, where every step finds the one that sampled; what is of a minibatch,
    where that is the rollout.
    """
    if minibatches == 1:
        expect_idle("whiten_over", recipe.shaping.whiten_over, ["rollout"], "minibatches is 1, the rollout itself")
    if epochs * minibatches > 1:
        return
    reason = "ppo_epochs x minibatches is 1, and an iteration's first step finds the policy that sampled"
    usual: dict[str, Any] = {"early_stop": EarlyStop(), "clip": ClipConfig()}
    for group, names in {"early_stop": ("kl", "ratio"), "clip": ("ratio", "ratio_high", "value")}.items():
        for name in names:
            expect_idle(f"{group}.{name}", getattr(getattr(recipe, group), name), [getattr(usual[group], name)], reason)


def _refuse_of_a_critic_at_rest(recipe: Recipe) -> None:
    """What moves a critic, where its loss weighs nothing."""
    if recipe.clip.value_coef:
        return
    for name in ("lr", "warmup", "max_norm", "lora"):
        found, default = getattr(recipe.critic, name), getattr(CriticConfig(), name)
        expect_idle(f"critic.{name}", found, [default], "clip.value_coef is 0, so the critic does not learn")
