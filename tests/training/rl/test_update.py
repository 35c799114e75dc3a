"""A minibatch's losses, and its statistics over micro-batches and processes."""

import math

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from gpt_modules.training.rl.settings import ClipConfig
from gpt_modules.training.rl.shaping import Rollout
from gpt_modules.training.rl.update import Outputs, Penalty, StepStatistics, update_loss


def rollout(rows, logprobs, values, advantages, returns, mask):
    cells = torch.zeros(rows, mask.shape[1], dtype=torch.long)
    sampled = (cells, torch.ones(rows).long(), cells, mask, logprobs)
    return Rollout(*sampled, advantages, values, returns, rewards=returns)


def test_the_loss_is_worked_by_hand():
    """One token that counts, e^0.5 times as likely as it was: clipped at 1.3 where that is worse for it. Its value has
    come 0.8 nearer to the return of 2, of which 0.4 are too many. No number is a default.
    """
    old = rollout(1, *(torch.tensor([[x, 9.0]]) for x in (-1.0, 3.0, 2.0, 2.0)), torch.tensor([[True, False]]))
    outputs = Outputs(torch.tensor([[-0.5, 9.0]]), torch.tensor([[0.7, 9.0]]), torch.tensor([[2.2, 9.0]]))
    loss, shares = update_loss(outputs, old, ClipConfig(0.3, 0.4, 0.25), 1)
    found = {name: float(share) for name, share in shares.items()}
    assert found == pytest.approx({
        "train/loss": -2.6 + 0.25 * 0.18,
        "loss/policy": -2.6,
        "policy/approx_kl": 0.125,
        "policy/clip_fraction": 1.0,
        "policy/ratio": 1.6487213,
        "loss/value": 0.18,
        "value/clip_fraction": 1.0,
        "policy/entropy": 0.7,
    })  # fmt: skip
    assert loss is shares["train/loss"]


def test_without_a_critic_the_loss_is_the_policys_and_the_distance_to_the_reference_where_it_is_asked_for():
    """The token that counts is 1 nat likelier than the reference has it: k2 is a half, k3 1/e; an answer of one token
    is a mean of its own, whatever the normaliser of tokens is.
    """
    cells = [torch.tensor([[x, 9.0]]) for x in (-1.0, 2.0)]
    old = rollout(1, cells[0], None, cells[1], None, torch.tensor([[True, False]]))
    old = old._replace(ref_logprobs=torch.tensor([[-2.0, -50.0]]))
    outputs = Outputs(torch.tensor([[-1.0, 9.0]]), torch.tensor([[0.7, 9.0]]))
    for penalty, distance in ((None, None), (Penalty("k2", 0.3), 0.5), (Penalty("k3", 0.3), math.exp(-1))):
        loss, shares = update_loss(outputs, old, ClipConfig(), 4, 1.0, penalty)
        assert loss.item() == pytest.approx(-2.0 + 0.3 * (distance or 0.0))
        assert shares.get("loss/kl") == (None if distance is None else pytest.approx(distance))
        assert not {"loss/value", "value/clip_fraction"} & shares.keys()
        assert shares["policy/ratio"].item() == 0.25


def test_clip_higher_is_the_recipes():
    """A gain is followed further than a loss is."""
    cells = [torch.tensor([[x]]) for x in (0.0, 1.0)]
    old = rollout(1, cells[0], None, cells[1], None, torch.tensor([[True]]))
    outputs = Outputs(torch.tensor([[1.5]]).log(), torch.tensor([[0.0]]))
    for high, loss in ((None, -1.2), (0.28, -1.28), (1e30, -1.5)):
        assert update_loss(outputs, old, ClipConfig(0.2, ratio_high=high), 1)[0].item() == pytest.approx(loss)


@pytest.mark.parametrize("sequences", [None, 6.0])
def test_shares_of_micro_batches_add_up(sequences):
    """Each by the normaliser of the whole, whatever their token counts are."""
    generator = torch.Generator().manual_seed(0)
    fields = [torch.randn(6, 5, generator=generator) for _ in range(7)]
    mask = torch.rand(6, 5, generator=generator) < 0.6

    def shares(rows, normaliser):
        part = rollout(len(rows), *(field[rows] for field in fields[:4]), mask[rows])
        part = part._replace(ref_logprobs=fields[3][rows])
        outputs = Outputs(*(field[rows] for field in fields[4:]))
        return update_loss(outputs, part, ClipConfig(), normaliser, sequences, Penalty("k3", 0.3))[1]

    whole, tokens = shares(torch.arange(6), float(mask.sum())), float(mask.sum())
    parts = [shares(rows, tokens) for rows in torch.arange(6).split((1, 2, 3))]
    for name, value in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), value)


def test_a_steps_statistics_are_means_over_micro_batches_and_processes():
    """Two micro-batches here, of which one has a number of its own, and another process whose numbers are 1 greater."""

    class Two(SingleDeviceStrategy):
        def reduce(self, means, *_, reduce_op, **__):
            return means + {"mean": 0.5, "sum": 9.0}[reduce_op]

    strategy, step = Two(), StepStatistics()
    for _ in range(2):
        step.add({"a": torch.tensor(1.0), "b": torch.tensor(2.0)})
        step.add({"a": torch.tensor(5.0), "c": torch.tensor(8.0, requires_grad=True)})
        logged = step.close(strategy)
        assert {name: float(value) for name, value in logged.items()} == {"a": 3.5, "b": 1.5, "c": 4.5}
        assert not any(value.requires_grad for value in logged.values())
