"""Which steps are taken."""

import logging

import pytest
import torch
from lightning_utilities.core.rank_zero import rank_zero_only

from gpt_modules.training.rl.early_stop import StepsTaken
from gpt_modules.training.rl.settings import EarlyStop


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
