import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from gpt_modules.functional import adaptive_kl_coef, kl_estimate, kl_shaped_rewards


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_zero_for_equal_policies(kind):
    logprobs = torch.randn(3, 4)
    assert torch.count_nonzero(kl_estimate(logprobs, logprobs, kind)) == 0


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_unbiased_under_the_policy(kind):
    policy, reference = Categorical(logits=torch.randn(9).double()), Categorical(logits=torch.randn(9).double())
    expectation = (policy.probs * kl_estimate(policy.logits, reference.logits, kind)).sum()
    torch.testing.assert_close(expectation, kl_divergence(policy, reference))


def test_gradient_of_k2_is_the_gradient_of_the_kl():
    logits, reference = torch.randn(9).double().requires_grad_(), Categorical(logits=torch.randn(9).double())
    policy = Categorical(logits=logits)
    estimate = (policy.probs.detach() * kl_estimate(policy.logits, reference.logits, "k2")).sum()
    (of_estimate,) = torch.autograd.grad(estimate, logits, retain_graph=True)
    (of_kl,) = torch.autograd.grad(kl_divergence(policy, reference), logits)
    torch.testing.assert_close(of_estimate, of_kl)


def test_literals_signs_and_no_overflow():
    # A token the policy finds twice as likely as the reference does, and the reverse.
    logprobs, reference = torch.tensor([math.log(0.5), math.log(0.25)]), torch.tensor([math.log(0.25), math.log(0.5)])
    ln2 = math.log(2)
    torch.testing.assert_close(kl_estimate(logprobs, reference), torch.tensor([ln2, -ln2]))
    torch.testing.assert_close(kl_estimate(logprobs, reference, "k2"), torch.tensor([ln2**2 / 2, ln2**2 / 2]))
    torch.testing.assert_close(kl_estimate(logprobs, reference, "k3"), torch.tensor([ln2 - 0.5, 1 - ln2]))
    far = kl_estimate(torch.tensor([-500.0]), torch.tensor([0.0]), "k3")
    assert far.item() == pytest.approx(math.expm1(20) - 500), "a ratio counts up to exp(20)"


def test_another_kind_is_refused():
    # Past the type check of the tests, which refuses it too.
    unchecked = getattr(kl_estimate, "__wrapped__", kl_estimate)
    with pytest.raises(ValueError, match=r"found 'k4', expected 'k1', 'k2' or 'k3'"):
        unchecked(torch.zeros(1), torch.zeros(1), "k4")


def test_score_lands_on_the_last_counted_token_of_each_row():
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 0]]).bool()
    kl = torch.where(mask, 2.0, torch.nan)
    rewards = kl_shaped_rewards(torch.tensor([10.0, 20.0, 30.0, 40.0]), kl, mask, 0.5)
    assert rewards.tolist() == [[-1, -1, 9], [19, 0, 0], [0, 29, 0], [0, 0, 0]]


def test_a_row_sums_to_its_score_minus_its_weighted_kl():
    mask, kl, scores = torch.arange(7) < torch.tensor([[7], [3], [1]]), torch.randn(3, 7), torch.randn(3)
    rewards = kl_shaped_rewards(scores, kl, mask, torch.tensor(0.3))
    torch.testing.assert_close(rewards.sum(1), scores - 0.3 * (kl * mask).sum(1))


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(6.0, 0.1), (600.0, 0.1 * 1.01), (0.0, 0.1 * 0.99), (-3.0, 0.1 * 0.99), (6.6, 0.1 * 1.005)],
)
def test_adaptive_coefficient(kl, expected):
    # 500 episodes of a horizon of 10,000 move the coefficient by at most 0.2 * 0.05 = 1 %.
    assert adaptive_kl_coef(0.1, kl, 6.0, 10_000.0, 500) == pytest.approx(expected)


@pytest.mark.parametrize("episodes", [10_000, 60_000, 10**9])
def test_a_rollout_beyond_the_horizon_reacts_as_one_of_the_horizon(episodes):
    """At 60,000 of 10,000 the linear formula alone would give 0.1 * (1 - 0.2 * 6) = -0.02."""
    assert adaptive_kl_coef(0.1, 0.0, 6.0, 10_000.0, episodes) == pytest.approx(0.08)
    assert adaptive_kl_coef(0.1, 600.0, 6.0, 10_000.0, episodes) == pytest.approx(0.12)
