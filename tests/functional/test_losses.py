import math
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F

from gpt_modules.functional import (
    clipped_value_loss,
    dpo_losses,
    explained_variance,
    kl_loss,
    pair_margins,
    ppo_clip_loss,
    preferred_nlls,
    ranking_loss,
    supervised_scores,
)

ALL = torch.ones(1, 3, dtype=torch.bool)


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values])


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


# Ranking


def test_ranking_loss_by_hand_for_four_answers_with_a_tie():
    scores, ranks = row(2.0, 0.5, 1.0, -1.0), torch.tensor([[0, 1, 1, 2]])
    # Five of the six pairs: the two tied answers are not compared. -log sigmoid(m) = softplus(-m).
    expected = sum(softplus(-m) for m in (1.5, 1.0, 3.0, 1.5, 2.0)) / 5
    loss = ranking_loss(scores, ranks, torch.ones(1, 4, dtype=torch.bool))
    assert loss.item() == pytest.approx(expected)


def test_ranking_loss_against_a_naive_loop_with_missing_answers():
    scores, ranks, mask = torch.randn(6, 5), torch.randint(0, 4, (6, 5)), torch.rand(6, 5) < 0.8
    per_prompt = []
    for p in range(6):
        pairs = [
            (a, b) for a, b in combinations(range(5), 2) if mask[p, a] and mask[p, b] and ranks[p, a] != ranks[p, b]
        ]
        signs = [1 if ranks[p, a] < ranks[p, b] else -1 for a, b in pairs]
        terms = [softplus(-s * (scores[p, a] - scores[p, b]).item()) for s, (a, b) in zip(signs, pairs, strict=True)]
        per_prompt += [sum(terms) / len(terms)] if terms else []
    assert ranking_loss(scores, ranks, mask).item() == pytest.approx(sum(per_prompt) / len(per_prompt), rel=1e-5)


def test_ranking_loss_is_blind_to_a_shift_of_a_prompts_scores():
    scores, ranks, mask = torch.randn(3, 4).double(), torch.randint(0, 3, (3, 4)), torch.ones(3, 4, dtype=torch.bool)
    shifted = scores + torch.randn(3, 1)
    torch.testing.assert_close(ranking_loss(shifted, ranks, mask), ranking_loss(scores, ranks, mask))


def test_a_prompt_with_two_answers_weighs_as_much_as_one_with_four():
    scores = torch.randn(2, 4)
    ranks, mask = torch.tensor([[1, 0, 9, 9], [2, 0, 3, 1]]), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    alone = [ranking_loss(scores[p : p + 1], ranks[p : p + 1], mask[p : p + 1]) for p in range(2)]
    torch.testing.assert_close(ranking_loss(scores, ranks, mask), (alone[0] + alone[1]) / 2)


def test_equal_scores_cost_ln_2_whatever_the_number_of_answers():
    for k in (2, 5, 9):
        loss = ranking_loss(torch.zeros(3, k), torch.arange(k).expand(3, k), torch.ones(3, k, dtype=torch.bool))
        assert loss.item() == pytest.approx(math.log(2))


def test_no_pair_gives_zero_and_a_zero_gradient():
    scores = torch.randn(2, 3, requires_grad=True)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
    loss = ranking_loss(scores, torch.tensor([[4, 4, 4], [0, 1, 2]]), mask)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(scores.grad, torch.zeros(2, 3))


def test_a_prompt_without_a_pair_is_not_one_of_the_mean():
    scores, ranks = torch.randn(3, 2), torch.tensor([[1, 2], [1, 1], [1, 2]])
    mask = torch.tensor([[True, True], [True, True], [True, False]])
    torch.testing.assert_close(ranking_loss(scores, ranks, mask), ranking_loss(scores[:1], ranks[:1], mask[:1]))


def test_missing_answers_may_hold_anything():
    scores = torch.tensor([[1.0, math.nan, 0.0]], requires_grad=True)
    loss = ranking_loss(scores, torch.tensor([[0, 1, 2]]), torch.tensor([[True, False, True]]))
    loss.backward()
    assert loss.item() == pytest.approx(softplus(-1.0))
    assert scores.grad[0, 1] == 0
    assert scores.grad[0, 0] < 0 < scores.grad[0, 2]


def test_margins_are_of_preferred_answers_that_exist():
    """By hand; what stands in other cells is nobody's."""
    scores, mask = (
        torch.tensor([[3.0, 1.0, math.nan], [2.0, 7.0, 4.0]]),
        torch.tensor([[True, True, False], [True] * 3]),
    )
    margins, counted = pair_margins(scores, torch.tensor([[0, 1, 2], [0, 1, 1]]), mask)
    assert margins[counted].tolist() == [2.0, -5.0, -2.0]
    assert counted.nonzero().tolist() == [[0, 0, 1], [1, 0, 1], [1, 0, 2]]
    assert not margins[~counted].any()


# Direct preference optimisation


def test_dpo_by_hand():
    """Three answers, two of which tie; a second prompt of two. -log sigmoid(m) = softplus(-m)."""
    logprobs = torch.tensor([[-10.0, -20.0, -5.0], [-1.0, -2.0, 0.0]])
    reference = torch.tensor([[-12.0, -21.0, -8.0], [-1.0, -5.0, 0.0]])
    ranks, mask = torch.tensor([[1, 2, 2], [2, 1, 0]]), torch.tensor([[True] * 3, [True, True, False]])
    losses, counted, rewards = dpo_losses(logprobs, reference, ranks, mask, beta=0.5)
    assert rewards.tolist() == [[1.0, 0.5, 1.5], [0.0, 1.5, 0.0]]
    assert losses.tolist() == pytest.approx([(softplus(-0.5) + softplus(0.5)) / 2, softplus(-1.5)])
    assert counted.tolist() == [True, True]


def test_the_gradient_of_dpo_is_the_papers():
    """Below eq. 7: -beta sigma(r_l - r_w) (grad log pi(y_w) - grad log pi(y_l)), largest where the order is wrong."""
    logprobs, reference, beta = torch.tensor([[-3.0, -1.0]], requires_grad=True), torch.tensor([[-2.0, -4.0]]), 0.7
    losses, _, rewards = dpo_losses(logprobs, reference, torch.tensor([[1, 2]]), torch.ones(1, 2).bool(), beta)
    losses.sum().backward()
    weight = beta * torch.sigmoid(rewards[0, 1] - rewards[0, 0]).item()
    assert logprobs.grad.tolist() == [pytest.approx([-weight, weight])]
    assert not rewards.requires_grad


def test_dpo_is_blind_to_what_a_prompts_answers_share():
    """What the partition function of a prompt, in the reward, or a constant of both models would add."""
    logprobs, reference = torch.randn(4, 3).double(), torch.randn(4, 3).double()
    ranks, mask = torch.tensor([[1, 2, 3]] * 4), torch.ones(4, 3, dtype=torch.bool)
    shifted = dpo_losses(logprobs + torch.randn(4, 1), reference, ranks, mask, 0.3)
    torch.testing.assert_close(shifted.losses, dpo_losses(logprobs, reference, ranks, mask, 0.3).losses)


def test_a_policy_that_is_its_reference_loses_ln_2_and_a_large_beta_only_widens():
    logprobs, ranks, mask = torch.randn(2, 3), torch.tensor([[1, 2, 3]] * 2), torch.ones(2, 3, dtype=torch.bool)
    for beta in (0.01, 1.0, 100.0):
        found = dpo_losses(logprobs, logprobs, ranks, mask, beta)
        assert found.losses.tolist() == pytest.approx([math.log(2)] * 2)
        assert found.rewards.abs().max() == 0.0


def test_the_preferred_answers_nats_by_hand():
    """Three answers, of which the middle one is preferred to the last; two that tie; and a place without an answer."""
    logprobs = torch.tensor([[-10.0, -21.0, -5.0], [-1.0, -8.0, math.nan]])
    lengths = torch.tensor([[5, 7, 2], [1, 2, 1]])
    ranks, mask = torch.tensor([[1, 2, 3], [1, 1, 0]]), torch.tensor([[True] * 3, [True, True, False]])
    assert preferred_nlls(logprobs, lengths, ranks, mask).tolist() == [pytest.approx((2 + 2 + 3) / 3), 0.0]


def test_the_preferred_answers_nats_pull_at_those_alone():
    """And at each by its own length, however many pairs a prompt has."""
    logprobs = torch.tensor([[-10.0, -20.0, math.nan], [-10.0, -20.0, -7.0]], requires_grad=True)
    ranks, mask = torch.tensor([[2, 1, 0], [2, 1, 2]]), torch.tensor([[True, True, False], [True] * 3])
    preferred_nlls(logprobs, torch.tensor([[5, 4, 1], [5, 4, 7]]), ranks, mask).sum().backward()
    assert logprobs.grad.tolist() == [[0.0, -0.25, 0.0]] * 2


# Policy


def test_unmoved_policy_has_ratio_one_and_the_policy_gradient():
    logprobs, advantages = torch.randn(2, 3).requires_grad_(), torch.randn(2, 3)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    loss, approx_kl, clip_fraction, ratio_mean = ppo_clip_loss(logprobs, logprobs.detach(), advantages, mask)
    assert (approx_kl.item(), clip_fraction.item(), ratio_mean.item()) == (0.0, 0.0, 1.0)
    loss.backward()
    torch.testing.assert_close(loss, -advantages[mask].mean())
    torch.testing.assert_close(logprobs.grad, torch.where(mask, -advantages / 3, 0.0))


def test_clipping_by_hand():
    ratios, advantages = row(1.5, 1.5, 0.5, 0.5, 1.1, 0.9), row(1.0, -1.0, 1.0, -1.0, 2.0, 2.0)
    logprobs = ratios.log().requires_grad_()
    stats = ppo_clip_loss(logprobs, torch.zeros(1, 6), advantages, torch.ones(1, 6, dtype=torch.bool))
    # Gains stop at 1.2, losses do not; the mirror image below 1.
    assert stats.loss.item() == pytest.approx((-1.2 + 1.5 - 0.5 + 0.8 - 2.2 - 1.8) / 6)
    assert stats.clip_fraction.item() == pytest.approx(2 / 6)
    assert stats.ratio_mean.item() == pytest.approx(1.0)
    assert stats.approx_kl.item() == pytest.approx(sum(math.log(r) ** 2 for r in ratios[0].tolist()) / 12)
    stats.loss.backward()
    assert (logprobs.grad == 0).tolist() == [[True, False, False, True, False, False]]


def test_the_upper_limit_of_a_ratio_may_be_its_own():
    """A gain is followed up to 1.28, a loss down to 0.8; the other way nothing is limited."""
    ratios, advantages = row(1.5, 1.5, 0.5, 0.5, 1.25, 0.9), row(1.0, -1.0, 1.0, -1.0, 2.0, 2.0)
    stats = ppo_clip_loss(ratios.log(), torch.zeros(1, 6), advantages, ratios > 0, clip_high=0.28)
    assert stats.loss.item() == pytest.approx((-1.28 + 1.5 - 0.5 + 0.8 - 2.5 - 1.8) / 6)
    assert stats.clip_fraction.item() == pytest.approx(2 / 6)


def test_a_mean_over_answers_is_that_of_the_policy_loss_alone():
    """An answer of three tokens, and one of one: a half is of each. The statistics stay means over tokens."""
    ratios, mask = torch.tensor([[1.5, 1.0, 0.5], [1.2, 9.0, 9.0]]), torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
    advantages = torch.tensor([[-1.0, -1.0, -1.0], [2.0, 2.0, 2.0]])
    stats = ppo_clip_loss(ratios.log(), torch.zeros(2, 3), advantages, mask, sequences=2.0)
    assert stats.loss.item() == pytest.approx(((1.5 + 1.0 + 0.8) / 3 - 2.4) / 2)
    of_more = ppo_clip_loss(ratios.log(), torch.zeros(2, 3), advantages, mask, sequences=8.0)
    assert of_more.loss.item() == pytest.approx(stats.loss.item() / 4), "a micro-batch of a step of 8 answers"
    assert stats.ratio_mean.item() == pytest.approx(4.2 / 4)
    assert stats.clip_fraction.item() == pytest.approx(1 / 4)


def test_the_distance_to_the_reference_by_hand():
    """0.5 nats likelier than the reference has it, 1 nat less likely, and the first again as an answer of its own."""
    difference, mask = torch.tensor([[0.5, -1.0], [0.5, torch.nan]]), torch.tensor([[1, 1], [1, 0]]).bool()
    one, other = {"k2": (0.125, 0.5), "k3": (math.exp(-0.5) - 0.5, math.e - 2)}, torch.zeros(2, 2)
    for kind, (likelier, less) in one.items():
        by_token, by_answer = (kl_loss(difference, other, mask, kind, **given) for given in ({}, {"sequences": 2.0}))
        assert by_token.item() == pytest.approx((2 * likelier + less) / 3)
        assert by_answer.item() == pytest.approx(((likelier + less) / 2 + likelier) / 2)
        assert kl_loss(difference, other, mask, kind, normaliser=6.0).item() == pytest.approx(by_token.item() / 2)
        assert kl_loss(difference, other, mask, kind, sequences=8.0).item() == pytest.approx(by_answer.item() / 4)


@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_only_k2_has_the_gradient_of_the_kl(kind):
    """Over four draws of a policy that says three tokens with 1/2, 1/4, 1/4, which is their expectation; k3 has that of
    the reversed one.
    """
    logits, drawn = torch.tensor([0.5, 0.25, 0.25]).double().log().requires_grad_(), torch.tensor([[0, 0, 1, 2]])
    own, theirs = logits.log_softmax(0), torch.tensor([0.1, 0.7, 0.2]).double().log()
    pairs = {"k2": (own, theirs), "k3": (theirs, own)}[kind]
    (expected,) = torch.autograd.grad((pairs[0].exp() * (pairs[0] - pairs[1])).sum(), logits, retain_graph=True)
    loss = kl_loss(own[drawn], theirs[drawn], torch.ones(1, 4, dtype=torch.bool), kind)
    (found,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(found, expected)


def test_only_the_policy_loss_has_a_gradient():
    stats = ppo_clip_loss(torch.randn(1, 3, requires_grad=True), torch.randn(1, 3), torch.randn(1, 3), ALL)
    assert [field.requires_grad for field in stats] == [True, False, False, False]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_log_ratio_counts_up_to_20(sign):
    stats = ppo_clip_loss(row(sign * 1000.0), row(0.0), row(-1.0), torch.ones(1, 1, dtype=torch.bool))
    assert stats.ratio_mean.item() == pytest.approx(math.exp(sign * 20.0))
    assert stats.approx_kl.item() == 200.0


def test_a_broken_token_neither_overflows_nor_leaks_out_of_the_mask():
    logprobs = row(0.0, -1.0, math.nan).requires_grad_()
    old, advantages = row(-1000.0, -1.0, 0.0), row(-1.0, 1.0, math.nan)
    stats = ppo_clip_loss(logprobs, old, advantages, torch.tensor([[True, True, False]]))
    stats.loss.backward()
    assert all(field.isfinite() for field in stats)
    assert logprobs.grad.isfinite().all()
    assert logprobs.grad[0, 2] == 0


# Value


def test_value_loss_by_hand_with_its_gradient_outside_the_clip_range():
    # Old value 0, range 0.2. Moved past the return's side: clipped. Moved away from it: not clipped, pulled back.
    values = row(0.5, 0.5, 0.1).requires_grad_()
    loss, clip_fraction = clipped_value_loss(values, row(0.0, 0.0, 0.0), row(1.0, -1.0, 0.0), ALL)
    assert loss.item() == pytest.approx(0.5 * (0.8**2 + 1.5**2 + 0.1**2) / 3)
    assert clip_fraction.item() == pytest.approx(1 / 3)
    loss.backward()
    torch.testing.assert_close(values.grad, row(0.0, 1.5 / 3, 0.1 / 3))


def test_values_inside_the_range_give_half_the_squared_error_and_count_as_unclipped():
    old, values = 0.19 * torch.rand(2, 40, 50)
    returns, mask = torch.randn(40, 50), torch.rand(40, 50) < 0.7
    loss, clip_fraction = clipped_value_loss(values, old, returns, mask)
    torch.testing.assert_close(loss, 0.5 * (values - returns)[mask].square().mean())
    assert clip_fraction == 0


def test_value_loss_ignores_what_padding_holds():
    values = row(1.0, math.nan, 1.0).requires_grad_()
    mask = torch.tensor([[True, False, False]])
    loss, _ = clipped_value_loss(values, row(1.0, 0.0, math.inf), row(3.0, 0.0, math.nan), mask)
    loss.backward()
    assert loss.item() == 2.0
    assert values.grad.tolist() == [[-2.0, 0.0, 0.0]]


# Both


@pytest.mark.parametrize("loss_function", [ppo_clip_loss, clipped_value_loss])
def test_micro_batches_add_up_to_the_batch(loss_function):
    """Losses, their gradients, and the statistics beside them."""
    new = torch.randn(6, 5).double().requires_grad_()
    old, targets = new.detach() + 0.3 * torch.randn(6, 5), torch.randn(6, 5).double()
    mask = torch.arange(5) < torch.tensor([[5], [1], [2], [4], [0], [3]])
    whole = loss_function(new, old, targets, mask)
    parts = [
        loss_function(new[i], old[i], targets[i], mask[i], normaliser=mask.sum())
        for i in (slice(0, 1), slice(1, 5), slice(5, 6))
    ]
    for name in whole._fields:
        torch.testing.assert_close(sum(getattr(part, name) for part in parts), getattr(whole, name))
    assert 0 < whole.clip_fraction < 1
    total = sum(part.loss for part in parts)
    of_parts, of_whole = (torch.autograd.grad(loss, new, retain_graph=True)[0] for loss in (total, whole.loss))
    torch.testing.assert_close(of_parts, of_whole)


@pytest.mark.parametrize("loss_function", [ppo_clip_loss, clipped_value_loss])
def test_empty_mask_gives_zero_and_inputs_stay(loss_function):
    tensors = [torch.randn(2, 3) for _ in range(3)]
    before = [tensor.clone() for tensor in tensors]
    assert loss_function(*tensors, torch.zeros(2, 3, dtype=torch.bool)).loss == 0
    assert all(torch.equal(*pair) for pair in zip(tensors, before, strict=True))


def test_explained_variance():
    returns, mask = torch.randn(4, 6), torch.rand(4, 6) < 0.6
    values = torch.where(mask, returns, torch.nan)
    assert explained_variance(values, returns, mask).item() == pytest.approx(1.0)
    assert explained_variance(torch.full((4, 6), 3.0), returns, mask).item() == pytest.approx(0.0, abs=1e-5)
    assert explained_variance(-values, returns, mask).item() == pytest.approx(-3.0, rel=1e-5)
    assert explained_variance(returns, torch.ones(4, 6), mask) == 0


def test_explained_variance_has_no_gradient():
    values = torch.randn(2, 3, requires_grad=True)
    assert not explained_variance(values, torch.randn(2, 3), torch.ones(2, 3, dtype=torch.bool)).requires_grad


# Supervised sets


def test_supervised_scores_of_tokens_are_a_mean_over_what_is_asked():
    logits, targets = torch.randn(4, 3, 5), torch.randint(5, (4, 3))
    targets[0, 1:], targets[1] = -100, -100
    loss, right = supervised_scores(logits, targets)
    torch.testing.assert_close(loss, F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
    best = logits.argmax(-1)
    assert right.tolist() == [
        all(int(b) == int(t) for b, t in zip(*row, strict=True) if t != -100) for row in zip(best, targets, strict=True)
    ]
    assert right.dtype == loss.dtype == torch.float32
    certain = F.one_hot(targets.clamp(min=0), 5) * 100.0
    assert supervised_scores(certain, targets)[1].tolist() == [1.0] * 4
    certain[3, 2] = certain[3, 2].roll(1)
    assert supervised_scores(certain, targets)[1].tolist() == [1.0, 1.0, 1.0, 0.0], "one wrong token is enough"


def test_supervised_scores_of_a_single_target():
    logits = torch.randn(1, 2, 5)
    loss, _ = supervised_scores(logits, torch.tensor([[3, -100]]))
    torch.testing.assert_close(loss, F.cross_entropy(logits[0, :1], torch.tensor([3])))


def test_supervised_scores_of_classes():
    logits, targets = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 0])
    loss, right = supervised_scores(logits, targets)
    assert loss.item() == pytest.approx((softplus(-2.0) + math.log(2) + softplus(1.0)) / 3)
    assert right.tolist() == [1.0, 1.0, 0.0]
    assert supervised_scores(logits.bfloat16(), targets)[0].item() == pytest.approx(loss.item(), rel=1e-6)
    assert supervised_scores(logits.double(), targets)[0].dtype == torch.float64


def test_supervised_scores_of_numbers_are_the_squared_error_and_nothing_is_right():
    loss, right = supervised_scores(torch.tensor([[1.0], [2.0], [4.0]]).bfloat16(), torch.tensor([[1.0], [0.0], [5.0]]))
    assert loss.item() == pytest.approx(5 / 3)
    assert right.tolist() == [0.0, 0.0, 0.0]


def test_where_nothing_is_asked_the_loss_is_zero_with_a_zero_gradient():
    logits = torch.randn(2, 3, 5, requires_grad=True)
    loss, right = supervised_scores(logits, torch.full((2, 3), -100))
    loss.backward()
    assert (loss.item(), right.tolist()) == (0.0, [1.0, 1.0])
    assert not logits.grad.any()
