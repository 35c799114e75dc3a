"""The host hands a device its work and does not wait for it, but where it is written here why."""

import warnings
from collections import Counter

import lightning.pytorch as L
import pytest
import torch
from device import Device, device, on_paper

from gpt_modules.backbone import LoRAConfig
from gpt_modules.data import PPODataModule, PretrainingText
from gpt_modules.training.callbacks.checkpointing import RandomState
from gpt_modules.training.callbacks.gradients import FreedGradients
from gpt_modules.training.callbacks.guards import FiniteLossGuard
from gpt_modules.training.callbacks.rates import LearningRates
from gpt_modules.training.callbacks.throughput import Throughput
from gpt_modules.training.pretraining import PretrainingModule
from gpt_modules.training.rl.estimators import EstimatorConfig
from gpt_modules.training.rl.rewards import RewardSource
from gpt_modules.training.rl.settings import CriticConfig, EarlyStop, EMAConfig, KLConfig, PtxConfig, SamplingConfig

STEPS = 5
IN_A_STEP = {
    ("functional/logprobs.py", "linear_cross_entropy"): "rows without a label meet no head: how many there are",
    ("training/answer_logprobs.py", "answer_logprobs"): "prompts and padding meet no head",
    ("training/rl/early_stop.py", "StepsTaken.look"): "whether the step is taken depends on its minibatch",
    ("training/ppo.py", "PPOModule.training_step"): "what the rollout came to is shown, once an iteration",
}
AT_A_LOG_STEP = {
    "training/callbacks/rates.py": "a rate of the host becomes a metric",
    "training/callbacks/throughput.py": "and so does a speed",
    "training/pretraining.py": "and how many tokens there were",
    "training/callbacks/guards.py": "whether a loss was not finite",
}
AFTER_A_LOG_STEP = {"fabric/utilities/apply_func.py": "what a logger writes is read"}
IN_A_ROLLOUT = {
    "backbone/decoding/generation.py": "lengths of prompts and their noise go over; who has finished comes back",
    "backbone/decoding/step.py": "a step is captured when the device has come to rest",
    "training/rl/rollout.py": "how wide the answers are, and the pieces that they are scored in",
    "functional/responses.py": "how many tokens a piece has that is scored",
    "training/rl/sequences.py": "functions read texts",
    "training/rl/terms.py": "whether an answer ended with another token than the reward model knows",
    "training/rl/rewards.py": "no score that is not finite goes on",
    "training/rl/shaping.py": "nor one that overflows",
    "functional/diversity.py": "how many n-grams there are",
    "training/ppo.py": "the rollout's numbers are told",
    "training/rl/experience.py": "minibatches are cut on the host",
}
"""A few each, against a second of sampling."""
IN_A_VALIDATION = {
    "functional/logprobs.py": "as in a step",
    "training/answer_logprobs.py": "as in a step",
    "training/labelling_metrics.py": "how many rows have a label",
    "functional/preferences.py": "how many pairs a ranking has, and how many answers",
    "training/preference_metrics.py": "how many prompts have a pair",
    "training/rl/held_out.py": "answers are kept on the host",
}
"""A few each in a batch, most of them before its pass or behind it; at its end what was measured is read."""


class Phases(L.Callback):
    """The waits of a run by what it does: `rollout`, until its first batch is there; `step`; `log` and `logged`, in a
    log step and until the next batch is there; `validation`, of its batches. Not its first two steps, in which
    Lightning makes room for what is logged, nor the end of a validation.
    """

    def __init__(self):
        self.found, self.times = {}, Counter()

    def close(self, name):
        self.found[name] = self.found.get(name, Counter()) + Device.waits
        self.times[name] += 1
        Device.waits.clear()

    def on_train_start(self, *_):
        Device.waits.clear()

    def on_train_batch_start(self, trainer, *_):
        step = trainer.global_step
        self.logs = (step + 1) % trainer.log_every_n_steps == 0
        self.close("rollout" if step == 0 else self.behind or ("between" if self.logs else "logged"))
        self.behind = None if step >= 2 else "making room"

    def on_train_batch_end(self, *_):
        self.close(self.behind or ("log" if self.logs else "step"))

    def on_validation_start(self, *_):
        self.close("before a validation")
        self.behind = "the end of a validation"

    def on_validation_batch_end(self, *_):
        self.close("validation")

    def on_train_end(self, *_):
        self.close("end")


@pytest.fixture
def walk(fit):
    """walk(module, data, **trainer settings): the waits of `STEPS` steps of a fit on a device on paper, with what every
    run has.
    """

    def go(module, data, **settings):
        phases = Phases()
        callbacks = [RandomState(), FiniteLossGuard(), Throughput(), LearningRates(), FreedGradients(), phases]
        often = {"log_every_n_steps": 2, "limit_val_batches": 1, "max_epochs": 3, "max_steps": STEPS}
        often |= {"deterministic": True}  # what a device has only without an order raises
        try:
            fit(module, data, callbacks=callbacks, gradient_clip_val=1.0, **{**often, **on_paper(), **settings})
        finally:
            torch.use_deterministic_algorithms(False)
        return phases

    return go


quiet = pytest.mark.filterwarnings("ignore:The number of training batches", "ignore:.*per-sequence")


def files(waits):
    return {file for file, _ in waits}


def expect_few(phases, each=1):
    """Waits of what every procedure does are those that are listed, each of them at most so many times a step."""
    steps, logs = phases.found["step"], phases.found["log"]
    assert steps.keys() <= IN_A_STEP.keys()
    assert all(count <= each * phases.times["step"] for count in steps.values())
    assert files(logs) <= AT_A_LOG_STEP.keys() | files(IN_A_STEP)
    assert sum(count for (file, _), count in logs.items() if file in AT_A_LOG_STEP) <= 6 * phases.times["log"]
    assert files(phases.found.get("logged", {})) <= AFTER_A_LOG_STEP.keys() | IN_A_ROLLOUT.keys()
    assert not phases.found.get("between")


@quiet
@pytest.mark.parametrize("word", ["pretraining", "finetuning", "sft", "reward", "dpo", "maml"])
def test_a_procedure_waits_for_nothing_but_what_it_says(procedure, walk, word):
    with device():
        phases = walk(*procedure(word))
    expect_few(phases)
    assert not phases.found["rollout"]
    assert files(phases.found["validation"]) <= IN_A_VALIDATION.keys()
    assert sum(phases.found["validation"].values()) <= 7 * phases.times["validation"]


@quiet
@pytest.mark.parametrize("word", ["sft", "reward"])
def test_so_it_does_where_updates_learn(procedure, walk, word):
    with device():
        phases = walk(*procedure(word, lora=LoRAConfig(2)))
    expect_few(phases)


@quiet
@pytest.mark.parametrize(
    "given",
    [
        {"estimator": EstimatorConfig("rloo"), "answers": 4, "lora": LoRAConfig(2, targets=("attn.qkv",))},
        {"estimator": EstimatorConfig("grpo"), "answers": 2, "kl": KLConfig(loss="k3")},
        {"critic": CriticConfig(shared_trunk=True, max_norm=0.5), "early_stop": EarlyStop(kl=1e9)},
        {"critic": CriticConfig(lora=LoRAConfig(2)), "ema": EMAConfig(0.9)},
        {
            "whiten_over": "minibatch",
            "whiten_rewards": True,
            "episodes": 16,
            "sampling": SamplingConfig(truncate_after=2),
        },
    ],
    ids=str,
)
def test_an_iteration_waits_for_nothing_but_what_it_says(ppo, walk, micro, given):
    judge = {"judge": RewardSource(str(micro.reward))}
    with device() as paper:
        phases = walk(*ppo(minibatches=2, monitors=judge, **given), max_steps=4, check_val_every_n_epoch=2)
    expect_few(phases, each=2)
    assert files(phases.found["rollout"]) <= IN_A_ROLLOUT.keys()
    assert files(phases.found["validation"]) <= IN_A_ROLLOUT.keys() | IN_A_VALIDATION.keys()
    assert phases.found["validation"]["backbone/decoding/step.py", "CapturedStep.__init__"] > 0
    assert paper.calls["aten._fused_adamw_.default"] > 0


@quiet
@pytest.mark.usefixtures("functions")
def test_so_it_does_with_text_beside_and_functions(ppo, walk, micro, tmp_path):
    module, _ = ppo(minibatches=2, ptx=PtxConfig(0.5, windows=1), rewards="toy_rewards:length")
    text = PretrainingText(str(micro.pretraining), context=16, batch_size=4)
    files_of = {"tokenizer": str(micro.gpt), "cache_dir": str(tmp_path / "cache"), "episodes": 8, "pretraining": text}
    with device():
        phases = walk(module, PPODataModule(str(micro.prompts), **files_of), max_steps=4, limit_val_batches=0)
    expect_few(phases, each=2)
    assert files(phases.found["rollout"]) <= IN_A_ROLLOUT.keys()


@quiet
def test_a_wait_in_a_step_is_seen(procedure, walk, monkeypatch):
    """As it would be by whoever asks for a number, a shape or a mask."""
    own = PretrainingModule.training_step

    def asking(module, batch, batch_idx):
        loss = own(module, batch, batch_idx)
        return loss * loss.detach().item() * len(loss[None][loss[None] > 0]) * torch.tensor(1.0, device=loss.device)

    monkeypatch.setattr(PretrainingModule, "training_step", asking)
    with device():
        phases = walk(*procedure("pretraining"))
    assert sum(phases.found["step"].values()) == 4 * phases.times["step"]


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
        phases = walk(*procedure(word))
    expected = (STEPS - 1) * sum(phases.found["step"].values()) // phases.times["step"]
    steps = OnDevice()
    settings = {"log_every_n_steps": 100, "limit_val_batches": 0, "gradient_clip_val": 1.0, "precision": "bf16-mixed"}
    fit(*procedure(word), callbacks=[FiniteLossGuard(), steps], accelerator="gpu", max_steps=STEPS, **settings)
    found = [str(one.message) for one in steps.seen if "synchronizing" in str(one.message)]
    assert len(found) == expected, found
