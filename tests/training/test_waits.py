"""The host hands a device its work and does not wait for it, but where it is written here why."""

import warnings
from collections import Counter

import lightning.pytorch as L
import pytest
import torch
from device import Device, device, on_paper

from gpt_modules.training.callbacks.checkpointing import RandomState
from gpt_modules.training.callbacks.guards import FiniteLossGuard
from gpt_modules.training.callbacks.throughput import Throughput
from gpt_modules.training.pretraining import PretrainingModule
from gpt_modules.training.rl.estimators import EstimatorConfig
from gpt_modules.training.rl.settings import CriticConfig, EarlyStop, KLConfig

STEPS = 3
IN_A_STEP = {
    ("functional/logprobs.py", "linear_cross_entropy"): "rows without a label meet no head: how many there are",
    ("training/answer_logprobs.py", "answer_logprobs"): "prompts and padding meet no head",
    ("training/rl/early_stop.py", "StepsTaken.look"): "whether the step is taken depends on its minibatch",
}
IN_A_ROLLOUT = {
    "backbone/decoding/generation.py": "lengths of prompts and their noise go over; who has finished comes back",
    "training/rl/rollout.py": "how wide the answers are, and the pieces that they are scored in",
    "functional/responses.py": "how many tokens a piece has that is scored",
    "training/rl/terms.py": "whether an answer ended with another token than the reward model knows",
    "training/rl/rewards.py": "no score that is not finite goes on",
    "training/rl/shaping.py": "nor one that overflows",
    "functional/diversity.py": "how many n-grams there are",
    "training/ppo.py": "the rollout's numbers are told",
    "training/rl/experience.py": "minibatches are cut on the host",
}
"""A few each, against a second of sampling."""


class InSteps(L.Callback):
    """The waits of a run, which has no log step: `first`, until its first batch is there, and `later`, of all steps but
    the first, in which Lightning makes room for what is logged.
    """

    def on_train_start(self, *_):
        Device.waits.clear()

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 0:
            self.first = Counter(Device.waits)
        if trainer.global_step == 1:
            Device.waits.clear()

    def on_train_end(self, *_):
        self.later = Counter(Device.waits)


@pytest.fixture
def walk(fit):
    """walk(module, data): the waits of `STEPS` steps of a fit on a device on paper, with what every run has."""

    def go(module, data):
        steps = InSteps()
        callbacks = [RandomState(), FiniteLossGuard(), Throughput(), steps]
        often = {"log_every_n_steps": 100, "limit_val_batches": 0}
        fit(module, data, callbacks=callbacks, max_steps=STEPS, gradient_clip_val=1.0, **often, **on_paper())
        return steps

    return go


quiet = pytest.mark.filterwarnings("ignore:The number of training batches")


@quiet
@pytest.mark.parametrize("word", ["pretraining", "finetuning", "sft", "reward", "dpo", "maml"])
def test_a_step_waits_for_nothing_but_what_it_says(procedure, walk, word):
    with device():
        steps = walk(*procedure(word))
    assert not steps.first
    assert steps.later.keys() <= IN_A_STEP.keys()
    assert all(count == STEPS - 1 for count in steps.later.values())


@quiet
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"estimator": EstimatorConfig("rloo"), "answers": 4},
        {"estimator": EstimatorConfig("grpo"), "answers": 2, "kl": KLConfig(loss="k3")},
        {"critic": CriticConfig(shared_trunk=True, max_norm=0.5), "early_stop": EarlyStop(kl=1e9)},
        {"whiten_over": "minibatch", "whiten_rewards": True, "episodes": 16},
    ],
    ids=str,
)
def test_an_update_waits_for_nothing_but_what_it_says(ppo, walk, given):
    with device():
        steps = walk(*ppo(ppo_epochs=2, minibatches=2, **given))
    assert {file for file, _ in steps.first} <= IN_A_ROLLOUT.keys()
    assert steps.later.keys() <= IN_A_STEP.keys()


@quiet
def test_a_wait_in_a_step_is_seen(procedure, walk, monkeypatch):
    """As it would be by whoever asks for a number, a shape or a mask."""
    own = PretrainingModule.training_step

    def asking(module, batch, batch_idx):
        loss = own(module, batch, batch_idx)
        return loss * loss.detach().item() * len(loss[None][loss[None] > 0]) * torch.tensor(1.0, device=loss.device)

    monkeypatch.setattr(PretrainingModule, "training_step", asking)
    with device():
        steps = walk(*procedure("pretraining"))
    assert sum(steps.later.values()) == 4 * (STEPS - 1)


@quiet
def test_two_devices_that_meet_are_seen(procedure, walk, monkeypatch):
    own = PretrainingModule.training_step
    monkeypatch.setattr(PretrainingModule, "training_step", lambda *arguments: own(*arguments) * torch.ones(1))
    with device(), pytest.raises(AssertionError, match="two devices meet"):
        walk(*procedure("pretraining"))


class OnDevice(L.Callback):
    """The waits that torch itself sees on a CUDA device, in all steps but the first."""

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 1:
            self.recorder = warnings.catch_warnings(record=True)
            self.seen = self.recorder.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")

    def on_train_end(self, *_):
        torch.cuda.set_sync_debug_mode("default")
        self.recorder.__exit__(None, None, None)


@quiet
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("word", ["pretraining", "finetuning", "sft", "reward", "dpo", "maml"])
def test_a_device_is_waited_for_as_often_as_on_paper(procedure, fit, walk, word):
    with device():
        expected = sum(walk(*procedure(word)).later.values())
    steps = OnDevice()
    settings = {"log_every_n_steps": 100, "limit_val_batches": 0, "gradient_clip_val": 1.0, "precision": "bf16-mixed"}
    fit(*procedure(word), callbacks=[FiniteLossGuard(), steps], accelerator="gpu", max_steps=STEPS, **settings)
    found = [str(one.message) for one in steps.seen if "synchronizing" in str(one.message)]
    assert len(found) == expected, found
