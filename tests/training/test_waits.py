"""The host hands a device its work and does not wait for it, but where it is written here why."""

from collections import Counter

import lightning.pytorch as L
import pytest
from device import Device, device, on_paper

from gpt_modules.training.callbacks.checkpointing import RandomState
from gpt_modules.training.callbacks.guards import FiniteLossGuard
from gpt_modules.training.callbacks.throughput import Throughput


class InSteps(L.Callback):
    """The waits from a run's first step to its last, no log step among them."""

    def on_train_start(self, *_):
        Device.waits.clear()

    def on_train_end(self, *_):
        self.waits = Counter(Device.waits)


@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.parametrize("word", ["pretraining", "finetuning", "sft", "reward", "dpo", "maml", "ppo"])
def test_x(procedure, fit, word):
    steps = InSteps()
    with device():
        fit(*procedure(word), callbacks=[RandomState(), FiniteLossGuard(), Throughput(), steps], max_steps=3,
            log_every_n_steps=100, limit_val_batches=0, gradient_clip_val=1.0, **on_paper())  # fmt: skip
    print(word, steps.waits)
