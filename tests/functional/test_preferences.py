"""Pairs, means of groups, and a correlation that rows cannot feign."""

import math

import numpy as np
import pytest
import torch

from gpt_modules.functional import deviation_correlation, group_means, row_deviations, untied_pairs

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]]).bool()


def test_pairs_by_hand():
    ranks = torch.tensor([[2, 1, 2, 0], [1, 1, 0, 0], [1, 2, 3, 3]])
    pairs = zip(*(column.tolist() for column in untied_pairs(ranks, MASK)), strict=True)
    assert sorted(pairs) == [(0, 1, 0), (0, 1, 2), (2, 0, 1), (2, 0, 2), (2, 0, 3), (2, 1, 2), (2, 1, 3)]


def test_means_of_groups_by_hand():
    found, means, counts = group_means(torch.tensor([1, 0, 1, 5]), torch.tensor([7, -1, 7, -1]))
    assert (found.tolist(), means.tolist(), counts.tolist()) == ([-1, 7], [2.5, 1.0], [2, 2])
    assert means.dtype == torch.float64
    assert all(len(column) == 0 for column in group_means(torch.zeros(0), torch.zeros(0, dtype=torch.int64)))


def test_deviations_are_of_what_counts_and_sum_to_nothing():
    values = torch.randn(3, 4)
    values[~MASK] = math.nan
    expected = np.concatenate([row[kept] - row[kept].mean() for row, kept in zip(values.double(), MASK, strict=True)])
    assert row_deviations(values, MASK).numpy() == pytest.approx(expected, abs=1e-15)
    assert row_deviations(values[:1], torch.tensor([[True, False, False, False]])).tolist() == [0.0]
    alike = torch.full((2, 3), 0.1)  # 0 to the bit, or a correlation were noise
    assert row_deviations(alike, torch.ones(2, 3).bool()).tolist() == [0.0] * 6


def test_the_correlation_of_one_row_is_pearsons():
    x, y = torch.randn(1, 9), torch.randn(1, 9)
    every = torch.ones(1, 9).bool()
    expected = np.corrcoef(x[0].double(), y[0].double())[0, 1]
    assert deviation_correlation(row_deviations(x, every), row_deviations(y, every)).item() == pytest.approx(expected)
    assert deviation_correlation(row_deviations(x, every), row_deviations(2 - 3 * x, every)).item() == pytest.approx(-1)


def test_what_rows_have_in_common_is_no_correlation():
    """Within each row longer is worse; the row of long answers scores higher as a whole."""
    lengths = torch.tensor([[1, 2, 3], [101, 102, 103]])
    scores = torch.tensor([[3.0, 2.0, 1.0], [53.0, 52.0, 51.0]])
    every = torch.ones(2, 3).bool()
    assert np.corrcoef(lengths.reshape(-1), scores.reshape(-1))[0, 1] > 0.99
    assert deviation_correlation(row_deviations(scores, every), row_deviations(lengths, every)).item() == -1.0


def test_what_never_deviates_has_no_correlation():
    assert deviation_correlation(torch.zeros(3), torch.randn(3)).isnan()
