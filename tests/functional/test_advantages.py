import itertools
from functools import partial

import pytest
import torch

from gpt_modules.functional import (
    generalized_advantage_estimation,
    group_relative_advantages,
    leave_one_out_advantages,
)


def prefix_mask(lengths: list[int], width: int) -> torch.Tensor:
    return torch.arange(width) < torch.tensor(lengths).unsqueeze(1)


@pytest.fixture
def episode() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(4, 6).double(), torch.randn(4, 6).double(), prefix_mask([6, 4, 1, 0], 6)


def discounted_sum_of_td_errors(rewards, values, mask, gamma, lam):
    """Row by row over the counted cells alone, as the definition reads: A_t = sum_l (gamma lam)^l delta_{t+l}."""
    advantages = torch.zeros_like(values)
    for row in range(len(values)):
        cells = mask[row].nonzero().flatten().tolist()
        following = [values[row, cell].item() for cell in cells[1:]] + [0.0]
        deltas = [rewards[row, c] + gamma * v - values[row, c] for c, v in zip(cells, following, strict=False)]
        for i, cell in enumerate(cells):
            advantages[row, cell] = sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[i:]))
    return advantages


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.7), (1.0, 0.0), (0.99, 1.0)])
def test_equals_the_definition(episode, gamma, lam):
    advantages, returns = generalized_advantage_estimation(*episode, gamma, lam)
    expected = discounted_sum_of_td_errors(*episode, gamma, lam)
    torch.testing.assert_close(advantages, expected)
    torch.testing.assert_close(returns, torch.where(episode[2], expected + episode[1], 0.0))


def test_without_settings_there_is_no_discount_and_lambda_is_that_of_stiennon(episode):
    found, _ = generalized_advantage_estimation(*episode)
    torch.testing.assert_close(found, discounted_sum_of_td_errors(*episode, 1.0, 0.95))


def test_hand_worked_literal():
    rewards, values = torch.tensor([[0.0, 1.0, 9.0]]), torch.tensor([[0.5, 0.25, 9.0]])
    # delta_1 = 1 - 0.25; delta_0 = 0 + 0.25 - 0.5; A_0 = -0.25 + 0.5 * 0.75
    advantages, returns = generalized_advantage_estimation(rewards, values, prefix_mask([2], 3), 1.0, 0.5)
    torch.testing.assert_close(advantages, torch.tensor([[0.125, 0.75, 0.0]]))
    torch.testing.assert_close(returns, torch.tensor([[0.625, 1.0, 0.0]]))


def test_lambda_one_is_monte_carlo_minus_value(episode):
    rewards, values, mask = episode
    advantages, returns = generalized_advantage_estimation(rewards, values, mask, 1.0, 1.0)
    to_go = torch.where(mask, rewards, 0.0).flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(returns, torch.where(mask, to_go, 0.0))
    torch.testing.assert_close(advantages, torch.where(mask, to_go - values, 0.0))


def test_lambda_zero_is_one_step_temporal_difference(episode):
    rewards, values, mask = episode
    advantages, _ = generalized_advantage_estimation(rewards, values, mask, 0.9, 0.0)
    following = torch.where(mask, values, 0.0).roll(-1, dims=1)
    following[:, -1] = 0.0
    torch.testing.assert_close(advantages, torch.where(mask, rewards + 0.9 * following - values, 0.0))


def test_perfect_values_have_no_advantage():
    rewards, mask = torch.randn(3, 5).double(), prefix_mask([5, 3, 2], 5)
    values = torch.where(mask, rewards, 0.0).flip(1).cumsum(1).flip(1)
    advantages, _ = generalized_advantage_estimation(rewards, values, mask)
    torch.testing.assert_close(advantages, torch.zeros_like(advantages))


def test_masked_cells_and_holes_are_as_if_they_were_not_there(episode):
    rewards, values, _ = episode
    keep = torch.tensor([0, 2, 3, 5])
    mask = torch.zeros(4, 6, dtype=torch.bool).index_fill(1, keep, True)
    dirty = [torch.where(mask, tensor, torch.nan) for tensor in (rewards, values)]
    whole = generalized_advantage_estimation(*dirty, mask)
    compact = generalized_advantage_estimation(rewards[:, keep], values[:, keep], mask[:, keep])
    for holed, dense in zip(whole, compact, strict=True):
        torch.testing.assert_close(holed[:, keep], dense)
        assert torch.count_nonzero(holed[~mask]) == 0


def test_targets_carry_no_gradient_and_inputs_stay():
    rewards, values = torch.randn(2, 3), torch.randn(2, 3, requires_grad=True)
    before = rewards.clone(), values.detach().clone()
    advantages, returns = generalized_advantage_estimation(rewards, values, prefix_mask([3, 2], 3))
    assert not advantages.requires_grad
    assert not returns.requires_grad
    assert torch.equal(rewards, before[0])
    assert torch.equal(values, before[1])


# Of answers to the same prompt

GROUPS = [leave_one_out_advantages, group_relative_advantages, partial(group_relative_advantages, divide_by_std=False)]


def test_leave_one_out_is_the_distance_to_the_mean_of_the_others():
    rewards = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, -3.0]])
    expected = [[1 - 8 / 2, 2 - 7 / 2, 6 - 3 / 2], [1.5, 1.5, -3.0]]
    torch.testing.assert_close(leave_one_out_advantages(rewards), torch.tensor(expected))


def test_group_relative_is_in_deviations_of_the_sample():
    """Of 1, 2 and 6 the mean is 3, and the squares of the differences sum to 14 over 2 degrees of freedom."""
    rewards = torch.tensor([[1.0, 2.0, 6.0]])
    expected = torch.tensor([[-2.0, -1.0, 3.0]])
    torch.testing.assert_close(group_relative_advantages(rewards, divide_by_std=False), expected)
    torch.testing.assert_close(group_relative_advantages(rewards), expected / (7**0.5 + 1e-4))
    torch.testing.assert_close(group_relative_advantages(rewards, eps=1.0), expected / (7**0.5 + 1.0))


@pytest.mark.parametrize("advantages", GROUPS)
@pytest.mark.parametrize("size", [2, 3, 4, 7])
def test_answers_that_score_the_same_have_no_advantage_at_all(advantages, size):
    """Not that of a rounded mean: 0.1 is no number of base 2, and three of them do not sum to 0.3."""
    rewards = torch.tensor([0.1, -1e6 / 3, 1e30, 0.0])[:, None].repeat(1, size)
    assert torch.equal(advantages(rewards), torch.zeros(4, size))


@pytest.mark.parametrize("advantages", GROUPS)
def test_a_prompts_own_reward_is_no_advantage_of_its_answers(advantages):
    """Prompts differ in how much their answers score: a constant of each takes and gives nothing, in any order; and
    what is better than the mean of its prompt is above 0, whatever the other prompts have.
    """
    rewards = torch.randn(5, 4).double()
    found = advantages(rewards)
    torch.testing.assert_close(found.sum(1), torch.zeros(5).double())
    torch.testing.assert_close(advantages(rewards + 100 * torch.randn(5, 1)), found)
    torch.testing.assert_close(advantages(rewards[:, [2, 0, 3, 1]]), found[:, [2, 0, 3, 1]])
    torch.testing.assert_close(advantages(rewards[1:3]), found[1:3])
    assert torch.equal(found > 0, rewards > rewards.mean(1, keepdim=True))


def test_only_the_division_makes_a_groups_scale_none_of_its_advantage():
    rewards = torch.randn(3, 4).double()
    torch.testing.assert_close(group_relative_advantages(9 * rewards, eps=0), group_relative_advantages(rewards, eps=0))
    for advantages in GROUPS[::2]:
        torch.testing.assert_close(advantages(9 * rewards), 9 * advantages(rewards))


def test_a_baseline_of_the_others_leaves_the_policy_gradient_unbiased():
    """Over all K-tuples of answers of a policy with three, weighted by their probabilities: E[1/K sum A grad log pi] is
    the gradient of the expected reward, where one of a mean with the own score is smaller by 1/K (Kool et al. 2019).
    """
    logits, reward = torch.tensor([0.3, -1.0, 0.5]).double().requires_grad_(), torch.tensor([1.0, -2.0, 5.0]).double()
    logprobs = logits.log_softmax(0)
    (gradient,) = torch.autograd.grad((logprobs.exp() * reward).sum(), logits, retain_graph=True)
    drawn = torch.tensor(list(itertools.product(range(3), repeat=3)))
    weights = logprobs.detach()[drawn].sum(1, keepdim=True).exp()
    for advantages, share in zip(GROUPS[::2], (1.0, 2 / 3), strict=True):
        surrogate = (weights * advantages(reward[drawn]) * logprobs[drawn]).sum() / 3
        (found,) = torch.autograd.grad(surrogate, logits, retain_graph=True)
        torch.testing.assert_close(found, share * gradient)


@pytest.mark.parametrize("advantages", GROUPS)
def test_advantages_of_a_group_carry_no_gradient_and_rewards_stay(advantages):
    rewards = torch.randn(2, 3, requires_grad=True)
    before = rewards.detach().clone()
    assert not advantages(rewards).requires_grad
    assert torch.equal(rewards, before)
