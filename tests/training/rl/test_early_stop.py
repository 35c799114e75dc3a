"""Which steps are taken."""

import itertools
import logging

import lightning.pytorch as L
import pytest
import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from ppo_variants import adam, distance, weights

from gpt_modules.training.rl.early_stop import StepsTaken
from gpt_modules.training.rl.settings import EarlyStop, EMAConfig


def measured(kl, ratio=1.0):
    return {"policy/approx_kl": torch.tensor(kl), "policy/ratio": torch.tensor(ratio)}


@pytest.mark.parametrize(
    ("bounds", "taken"),
    [
        (EarlyStop(), [True, True, True, True]),
        (EarlyStop(kl=0.3), [True, True, False, False]),
        (EarlyStop(kl=0.25), [True, True, False, False]),
        (EarlyStop(kl=0.1), [True, False, False, False]),
        (EarlyStop(ratio=1.5), [True, True, True, False]),
        (EarlyStop(kl=0.9, ratio=1.05), [True, False, False, False]),
    ],
)
def test_none_once_one_has_gone_too_far(bounds, taken):
    """At the bound a step is taken; after one beyond it even a harmless one is not, until the next iteration."""
    steps = StepsTaken(bounds)
    for iteration in (0, 1):
        steps.begin()
        found = []
        for of in ((0.0,), (0.25, 1.1), (0.5, 1.2), (0.0, 2.0)):
            steps.look(measured(*of), iteration)
            found.append(not steps.stopped)
        assert found == taken
        assert (steps.taken, steps.stopped) == (sum(taken), not all(taken))
    assert steps.bounded == (bounds != EarlyStop())


@pytest.mark.parametrize(("rank", "lines"), [(0, 1), (1, 0)])
def test_it_is_told_once_by_one_process(caplog, monkeypatch, rank, lines):
    monkeypatch.setattr(rank_zero_only, "rank", rank, raising=False)
    steps = StepsTaken(EarlyStop(kl=0.1))
    with caplog.at_level(logging.WARNING):
        for iteration in (3, 4):
            steps.begin()
            for kl in (0.05, 0.25, 0.5):
                steps.look(measured(kl), iteration)
    told = "iteration 3 ends after 1 steps: policy/approx_kl 0.25 > early_stop.kl 0.1; update/steps has the steps of"
    assert [message.startswith(told) for message in caplog.messages] == [True] * lines


def test_before_the_first_iteration_none_is_taken_and_none_is_left_out():
    steps = StepsTaken(EarlyStop(kl=0.1))
    assert (steps.taken, steps.stopped) == (0, False)


# --- in a run ---


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_rest_of_an_iteration_is_left_out_in_its_place(fit, ppo, accumulate):
    """Weights, moments and average keep every bit from the step that went too far to the iteration's end; steps,
    schedule, validation and the next rollout come as they would have come.
    """

    class Ends(L.Callback):
        def __init__(self):
            self.models, self.counts, self.rates = [], [], []

        def on_train_batch_end(self, trainer, module, batch, index, *_):
            if trainer.global_step > len(self.rates):
                self.models.append(
                    {**weights(module), **{f"a{n}": v.clone() for n, v in module.learners.average.state().items()}}
                )
                state = trainer.optimizers[0].state
                self.counts.append(state[next(module.policy.parameters())]["step"].item())
                self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    ends, bound = Ends(), EarlyStop(kl=1e-4)
    module, data = ppo(early_stop=bound, ema=EMAConfig(0.9), optimizer=adam(1e-2), minibatches=2, ppo_epochs=2)
    trainer = fit(module, data, callbacks=[ends], max_epochs=2, accumulate_grad_batches=accumulate)
    taken = trainer.logger.values("update/steps")
    assert trainer.global_step == 8 == len(ends.models)
    assert all(1 <= steps < 4 for steps in taken)
    still = [distance(one, other) == 0.0 for one, other in itertools.pairwise(ends.models)]
    first, second = map(int, taken)
    assert still == [False] * (first - 1) + [True] * (4 - first) + [False] * second + [True] * (4 - second)
    assert ends.counts[-1] == first + second
    assert ends.rates == pytest.approx([1e-2 * (1 - done / 8) for done in range(1, 9)])
    assert len(trainer.logger.values("val/score")) == 2
    losses = trainer.logger.values("train/loss")
    assert len(losses) == first + second + 2, "the step that went too far was measured"


def test_without_a_bound_no_steps_are_told(fit, ppo):
    assert not fit(*ppo(optimizer=adam(1e-1), ppo_epochs=4), limit_val_batches=0).logger.values("update/steps")
