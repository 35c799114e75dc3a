"""Scores as distributions over whole numbers, and means over rows."""

import math

import pytest
import torch
import torch.nn.functional as F

from gpt_modules.functional import expected_score, linear_cross_entropy, row_mean_weights, soft_targets


def test_a_score_is_split_between_its_two_neighbours() -> None:
    found = soft_targets(torch.tensor([0.0, 3.8, 2.5, 5.0]), 0, 5)
    by_hand = [[1, 0, 0, 0, 0, 0], [0, 0, 0, 0.2, 0.8, 0], [0, 0, 0.5, 0.5, 0, 0], [0, 0, 0, 0, 0, 1]]
    torch.testing.assert_close(found, torch.tensor(by_hand))


@pytest.mark.parametrize("low", [-2, 0, 1])
def test_targets_are_distributions_with_the_score_for_a_mean(low: int) -> None:
    scores = low + 4 * torch.rand(50)
    targets = soft_targets(scores, low, low + 4)
    torch.testing.assert_close(targets.sum(1), torch.ones(50))
    assert ((targets > 0).sum(1) <= 2).all()
    torch.testing.assert_close(expected_score(targets.log(), low), scores)


def test_no_score_adds_nothing_to_a_loss() -> None:
    logits = torch.randn(2, 4, requires_grad=True)
    F.cross_entropy(logits, soft_targets(torch.tensor([math.nan, 1.5]), 0, 3), reduction="sum").backward()
    assert logits.grad is not None
    assert torch.count_nonzero(logits.grad[0]) == 0
    assert logits.grad[1].abs().sum() > 0


def test_even_logits_expect_the_middle_and_certain_ones_their_level() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0], [-math.inf, -math.inf, 3.0]])
    torch.testing.assert_close(expected_score(logits, 1), torch.tensor([2.0, 3.0]))
    assert expected_score(logits.bfloat16(), 1).dtype == torch.float32


def test_weights_make_a_mean_of_means() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()
    losses = torch.tensor([[1.0, 2.0, 6.0, 9.0], [5.0, 9.0, 9.0, 9.0], [9.0, 9.0, 9.0, 9.0]])
    assert (row_mean_weights(mask) * losses).sum().item() == pytest.approx((3.0 + 5.0) / 2)


def test_a_single_token_is_the_mean_of_itself() -> None:
    assert row_mean_weights(torch.tensor([[True]])).tolist() == [[1.0]]


def test_where_nothing_counts_the_weights_are_zero() -> None:
    assert torch.equal(row_mean_weights(torch.zeros(2, 3, dtype=torch.bool)), torch.zeros(2, 3))
    assert row_mean_weights(torch.zeros(0, 3, dtype=torch.bool)).shape == (0, 3)


def test_the_auxiliary_loss_of_rows_of_unequal_length() -> None:
    hidden, weight, labels = torch.randn(3, 5, 8), torch.randn(20, 8), torch.randint(20, (3, 5))
    lengths = torch.tensor([5, 2, 1])
    mask = torch.arange(5) < lengths[:, None]
    weights = row_mean_weights(mask)
    found = linear_cross_entropy(hidden.flatten(0, 1), weight, labels.flatten(), row_weights=weights.flatten())
    of_rows = [F.cross_entropy(h[:n] @ weight.T, y[:n]) for h, y, n in zip(hidden, labels, lengths, strict=True)]
    torch.testing.assert_close(found, torch.stack(of_rows).mean())
