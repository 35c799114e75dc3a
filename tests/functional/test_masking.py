import math

import pytest
import torch

from gpt_modules.functional import masked_mean, masked_whiten, sequence_mean, token_mean

MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_mean_of_the_counted_values_only():
    values = torch.tensor([[1.0, 2.0, math.nan], [6.0, math.inf, -math.inf]])
    assert masked_mean(values, MASK).item() == 3.0
    assert masked_mean(values, MASK, dim=1).tolist() == [1.5, 6.0]


def test_mean_of_nothing_is_zero_with_a_zero_gradient():
    values = torch.full((2, 3), math.nan, requires_grad=True)
    mean = masked_mean(values, torch.zeros(2, 3, dtype=torch.bool))
    mean.backward()
    assert mean.item() == 0
    assert torch.equal(values.grad, torch.zeros(2, 3))


def test_shares_of_a_mean_add_up_to_it():
    values, mask = torch.randn(5, 4).double(), torch.rand(5, 4) < 0.6
    values = torch.where(mask, values, math.nan)
    parts = [token_mean(values[rows], mask[rows], mask.sum()) for rows in (slice(0, 1), slice(1, 5))]
    torch.testing.assert_close(sum(parts), token_mean(values, mask))
    torch.testing.assert_close(token_mean(values, mask), values[mask].mean())
    assert token_mean(torch.tensor([[2.0, 5.0]]), torch.tensor([[True, False]]), 8.0).item() == 0.25


def test_whitened_values_have_mean_zero_and_biased_variance_one():
    values, mask = 3.5 + torch.rand(64, 7), torch.rand(64, 7) < 0.6
    whitened = masked_whiten(values, mask)
    assert abs(whitened[mask].mean()) < 1e-5
    assert abs(whitened[mask].var(correction=0) - 1) < 1e-4
    assert torch.count_nonzero(whitened[~mask]) == 0


def test_whitening_rewards_keeps_their_mean():
    values, mask = 3.5 + torch.rand(64, 7), torch.rand(64, 7) < 0.6
    whitened = masked_whiten(values, mask, shift_mean=False)
    torch.testing.assert_close(whitened[mask].mean(), values[mask].mean())
    assert torch.count_nonzero(whitened[~mask]) == 0


def test_whitening_ignores_what_padding_holds_and_does_not_write_to_it():
    values = torch.tensor([[1.0, 3.0, math.nan], [5.0, math.inf, 7.0]])
    before = values.clone()
    # By hand: mean 3, biased variance 8/3.
    expected = torch.tensor([[-2.0, 0.0, 0.0], [2.0, 0.0, 0.0]]) / math.sqrt(8 / 3)
    torch.testing.assert_close(masked_whiten(values, MASK), expected)
    torch.testing.assert_close(values, before, equal_nan=True)


def test_whitening_is_blind_to_scale_and_offset():
    values, mask = torch.randn(8, 5), torch.rand(8, 5) < 0.7
    torch.testing.assert_close(masked_whiten(4 * values - 9, mask), masked_whiten(values, mask), atol=1e-5, rtol=1e-5)


def test_whitening_nothing_or_a_constant_is_finite():
    values = torch.full((2, 3), 2.0)
    assert torch.count_nonzero(masked_whiten(values, torch.zeros(2, 3, dtype=torch.bool))) == 0
    assert torch.count_nonzero(masked_whiten(values, MASK)) == 0


def test_a_mean_of_rows_weighs_each_row_the_same():
    """Whatever its length is; a row of nothing is one of them, and adds nothing."""
    values = torch.tensor([[1.0, 2.0, 6.0], [5.0, torch.nan, torch.inf], [9.0, 9.0, 9.0], [4.0, 8.0, torch.nan]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]]).bool()
    assert sequence_mean(values, mask).item() == pytest.approx((3 + 5 + 0 + 6) / 4)
    parts = [sequence_mean(values[i], mask[i], 4) for i in (slice(0, 1), slice(1, 4))]
    assert sum(parts).item() == pytest.approx(14 / 4)


def test_a_mean_of_rows_has_a_gradient_at_what_counts_alone():
    values, mask = torch.randn(2, 3).requires_grad_(), torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    sequence_mean(values, mask).backward()
    assert values.grad.tolist() == [[0.25, 0.25, 0.0], [0.5, 0.0, 0.0]]
