import math
from itertools import combinations

import pytest
import torch

from gpt_modules.functional import best_of_n_kl, best_of_n_mean


def brute_force(scores, values, n):
    """Every subset of n; of equal scores each is taken equally often."""
    means = []
    for subset in combinations(range(len(scores)), n):
        best = max(scores[i] for i in subset)
        ties = [values[i] for i in subset if scores[i] == best]
        means.append(sum(ties) / len(ties))
    return sum(means) / len(means)


def test_kl_literals():
    assert best_of_n_kl(1) == 0
    assert best_of_n_kl(2) == pytest.approx(0.6931471805599453 - 0.5)
    assert best_of_n_kl(64) == pytest.approx(4.158883083359671 - 0.984375)


@pytest.mark.parametrize("n", [2, 5, 16])
def test_kl_is_that_of_the_density_of_a_maximum(n):
    # The best of n uniform numbers has the density n u^(n-1): its KL to the uniform, by the midpoint rule.
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    density = n * u ** (n - 1)
    assert best_of_n_kl(n) == pytest.approx(float((density * density.log()).mean()), abs=1e-6)


@pytest.mark.parametrize("n", [0, -1])
def test_no_answer_has_no_kl(n):
    with pytest.raises(ValueError, match=f"n: found {n}, expected 1 or more"):
        best_of_n_kl(n)


@pytest.mark.parametrize("n", range(1, 8))
@pytest.mark.parametrize("kinds", [3, 1000])
def test_mean_over_all_subsets_with_and_without_ties(n, kinds):
    generator = torch.Generator().manual_seed(n)
    scores = torch.randint(kinds, (2, 3, 7), generator=generator).float()
    values = torch.randn(2, 3, 7, generator=generator)
    found = best_of_n_mean(scores, values, n)
    for prompt in [(i, j) for i in range(2) for j in range(3)]:
        expected = brute_force(scores[prompt].tolist(), values[prompt].tolist(), n)
        assert float(found[prompt]) == pytest.approx(expected, abs=1e-6)


def test_ends_are_the_mean_and_the_best():
    scores, values = torch.tensor([0.1, 0.4, 0.3]), torch.tensor([1.0, 2.0, 6.0])
    assert float(best_of_n_mean(scores, values, 1)) == pytest.approx(3)
    assert float(best_of_n_mean(scores, values, 2)) == pytest.approx((2 + 6 + 2) / 3)
    assert float(best_of_n_mean(scores, values, 3)) == pytest.approx(2)


def test_value_of_a_score_that_means_nothing_is_the_mean():
    values = torch.randn(50)
    assert float(best_of_n_mean(torch.zeros(50), values, 20)) == pytest.approx(float(values.mean()), abs=1e-6)


def test_order_of_the_answers_does_not_matter_and_many_do_not_overflow():
    scores, values, order = torch.randn(3000), torch.rand(3000), torch.randperm(3000)
    found = best_of_n_mean(scores, values, 1500)
    torch.testing.assert_close(found, best_of_n_mean(scores[order], values[order], 1500))
    assert 0 < float(found) < 1


def test_kl_weighs_what_a_mean_of_it_does():
    # The weights of a policy of best of n over N equally likely answers: their KL to 1 / N tends to the closed form.
    count, n = 4000, 4
    answers = torch.arange(count).double()
    weights = best_of_n_mean(answers.expand(count, count), torch.eye(count), n)
    kl = float(torch.special.xlogy(weights, weights * count).sum())
    assert kl == pytest.approx(best_of_n_kl(n), abs=5e-3)
    assert math.isclose(float(weights.sum()), 1)


@pytest.mark.parametrize("n", [0, 4])
def test_more_than_there_are_is_refused(n):
    with pytest.raises(ValueError, match=f"n: found {n}, expected 1 to the 3 answers of a prompt"):
        best_of_n_mean(torch.zeros(3), torch.zeros(3), n)


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="scores: found NaN"):
        best_of_n_mean(torch.tensor([0.0, math.nan]), torch.zeros(2), 1)
