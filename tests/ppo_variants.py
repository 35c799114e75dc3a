"""What PPO holds for: each estimator, critic and average; and how far models are apart."""

import lightning.pytorch as L
import pytest

from gpt_modules.training.optimizers import OptimizerConfig, ScheduleConfig
from gpt_modules.training.rl.estimators import EstimatorConfig
from gpt_modules.training.rl.settings import CriticConfig, EarlyStop, EMAConfig, KLConfig

FLAT = ScheduleConfig(shape="constant")
WITH_A_CRITIC = {
    "plain": {},
    "shared": {"critic": CriticConfig(shared_trunk=True, lr=1e-2)},
    "warmup": {"critic": CriticConfig(warmup=1, max_norm=0.1)},
    "shared-warmup": {"critic": CriticConfig(shared_trunk=True, warmup=1)},
    "average": {"ema": EMAConfig(0.9, "instead")},
    "two": {"ema": EMAConfig(0.9), "early_stop": EarlyStop(kl=0.02, ratio=1.5)},
}
BARE = {
    "rloo": {"estimator": EstimatorConfig("rloo"), "answers": 4},
    "grpo": {"estimator": EstimatorConfig("grpo"), "answers": 2, "kl": KLConfig(loss="k3")},
    "grpo over tokens": {
        "estimator": EstimatorConfig("grpo", False, "tokens"),
        "answers": 2,
        "kl": KLConfig(loss="k2"),
    },
}
# What holds exactly, holds for each of these.
VARIANTS = WITH_A_CRITIC | BARE
each_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


class FirstIteration(L.Callback):
    """Ends a run after it, that must be longer than a critic's warm-up."""

    def on_train_epoch_end(self, trainer, *_):
        trainer.should_stop = True


def one_iteration(module, *callbacks):
    """Settings of a run that makes no more than one, whatever its recipe waits for."""
    return {"max_epochs": 1 + module.recipe.critic.warmup, "callbacks": [*callbacks, FirstIteration()]}


def without_bounds(variant):
    """For an iteration of one step, whose bounds nothing would come near."""
    return {name: value for name, value in variant.items() if name != "early_stop"}


def adam(lr):
    return OptimizerConfig(lr=lr, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.0)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def distance(one, other):
    return sum((one[name] - other[name]).square().sum().item() for name in one) ** 0.5


class AtStart(L.Callback):
    """What the models are before the first step."""

    def on_train_start(self, trainer, module):
        models = (module.policy, module.critic, module.frozen.reference)
        self.policy, self.critic, self.reference = map(weights, models)
        self.reward = [weights(model) for model in module.frozen.reward.models().values()]
