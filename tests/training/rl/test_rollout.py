"""A rollout against naive loops: one row at a time, no padding, no cache, no pieces."""

import pytest
import torch

from gpt_modules.backbone import generate, load_pretrained
from gpt_modules.data.batches import PromptBatch
from gpt_modules.training.rl.rollout import (
    Sampling,
    Shaping,
    assemble,
    in_pieces,
    sample,
    score_responses,
    shape_rollout,
)

TEMPERATURE = 0.5
NO_DROPOUT = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0)


def noise(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def policy(micro):
    return load_pretrained(micro.gpt, kind="gpt", **NO_DROPOUT).eval()


@pytest.fixture(scope="module")
def reference(micro, policy):
    """The policy some updates ago."""
    moved = load_pretrained(micro.gpt, kind="gpt", **NO_DROPOUT).eval()
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=noise(5)))
    return moved


@pytest.fixture(scope="module")
def critic(micro):
    return load_pretrained(micro.reward, kind="reward", **NO_DROPOUT).eval().fold_scale()


@pytest.fixture(scope="module")
def prompts(micro):
    lengths = torch.tensor([3, 7, 5, 4, 7, 1, 2, 6] * 4)
    tokens = torch.randint(0, micro.vocab_size, (32, 7), generator=noise())
    return PromptBatch(torch.where(torch.arange(7) < lengths[:, None], tokens, 0), lengths)


@pytest.fixture(scope="module")
def sampling(policy, prompts):
    """The end token is one that the policy says often, so that some answers end and some do not."""
    drawn = generate(
        policy,
        [row[:n].tolist() for row, n in zip(*prompts, strict=True)],
        max_new_tokens=8,
        eos_id=None,
        temperature=TEMPERATURE,
        generator=noise(),
    )
    return Sampling(8, TEMPERATURE, int(drawn.tokens.flatten().mode().values))


def last_token_score(sequences):
    """A reward that depends on the response's text alone: the id of its last token."""
    return sequences.tokens.gather(1, sequences.lengths[:, None] - 1)[:, 0].float()


@pytest.fixture(scope="module")
def scored(policy, reference, prompts, sampling):
    found = score_responses(policy, reference, last_token_score, prompts, sampling, noise(), rows=5)
    assert 3 <= int(found.ended.sum()) <= 29, "both kinds must occur for the tests below to mean something"
    return found


def rows(scored):
    """Row number, whole row without padding, prompt length, response length."""
    tokens, starts, ends = scored.sequences
    return [(i, tokens[i, : int(ends[i])], int(starts[i]), int(ends[i] - starts[i])) for i in range(len(tokens))]


@torch.no_grad()
def naive_logprobs(model, row, start):
    tempered = (model(row[None])[0, start - 1 : -1] / TEMPERATURE).log_softmax(-1)
    return tempered.gather(1, row[start:, None])[:, 0], -(tempered.exp() * tempered).sum(-1)


def test_assemble_against_a_literal():
    prompts = PromptBatch(torch.tensor([[5, 6, 7], [8, 0, 0]]), torch.tensor([3, 1]))
    responses, mask = torch.tensor([[1, 2], [3, 4]]), torch.tensor([[True, False], [True, True]])
    tokens, starts, ends = assemble(prompts, responses, mask)
    assert tokens.tolist() == [[5, 6, 7, 1], [8, 3, 4, 0]]
    assert starts.tolist() == [3, 1]
    assert ends.tolist() == [4, 3]


def test_logprobs_are_those_of_the_sampler(policy, prompts, sampling, scored):
    columns = torch.arange(prompts.tokens.shape[1])
    drawn = generate(
        policy,
        (prompts.tokens, columns < prompts.lengths[:, None]),
        max_new_tokens=8,
        eos_id=sampling.eos_id,
        temperature=TEMPERATURE,
        generator=noise(),
    )
    width = scored.responses.shape[1]
    assert torch.equal(drawn.tokens[:, :width], scored.responses)
    assert torch.equal(drawn.mask[:, :width], scored.mask)
    difference = torch.where(scored.mask, drawn.logprobs[:, :width] - scored.logprobs, 0.0)
    assert difference.abs().max() < 1e-4


def test_logprobs_and_entropy_are_those_of_a_naive_forward(policy, reference, scored):
    for i, row, start, count in rows(scored):
        own, entropy = naive_logprobs(policy, row, start)
        assert torch.allclose(scored.logprobs[i, :count], own, atol=1e-4)
        assert torch.allclose(scored.entropy[i, :count], entropy, atol=1e-4)
        assert torch.allclose(scored.ref_logprobs[i, :count], naive_logprobs(reference, row, start)[0], atol=1e-4)


def test_a_response_ends_at_its_first_end_token(scored, sampling):
    for i, row, start, count in rows(scored):
        response = row[start:].tolist()
        assert response == scored.responses[i][scored.mask[i]].tolist()
        assert sampling.eos_id not in response[:-1]
        assert bool(scored.ended[i]) == (response[-1] == sampling.eos_id)
        assert scored.ended[i] or count == 8


def test_kl_is_zero_between_equals_and_summed_over_a_sequence(policy, prompts, sampling, scored):
    equal = score_responses(policy, policy, last_token_score, prompts, sampling, noise(), rows=5)
    assert torch.equal(equal.sequence_kl(), torch.zeros(32))
    by_hand = [
        sum((scored.logprobs[i, t] - scored.ref_logprobs[i, t]).item() for t in range(n)) for i, _, _, n in rows(scored)
    ]
    assert scored.sequence_kl().tolist() == pytest.approx(by_hand, abs=1e-4)


def test_padding_changes_nothing(policy, reference, critic, prompts, sampling, scored):
    """Three more columns, and rubbish wherever there is padding."""
    wide = torch.randint(1, 100, (32, 10), generator=noise(3))
    wide[:, :7] = torch.where(torch.arange(7) < prompts.lengths[:, None], prompts.tokens, wide[:, :7])
    padded = score_responses(
        policy, reference, last_token_score, PromptBatch(wide, prompts.lengths), sampling, noise(), rows=32
    )
    assert torch.equal(padded.responses, scored.responses)
    assert torch.equal(padded.mask, scored.mask)
    assert torch.equal(padded.scores, scored.scores)
    assert torch.equal(padded.ended, scored.ended)
    coef = torch.tensor(0.1)
    one, other = (shape_rollout(s, critic, coef, Shaping(), rows=7)[0] for s in (scored, padded))
    for name in ("logprobs", "values", "advantages", "returns"):
        difference = torch.where(scored.mask, getattr(one, name) - getattr(other, name), 0.0)
        assert difference.abs().max() < 1e-4, name


def test_sampling_ignores_the_other_rows(policy, prompts, sampling):
    """A prompt's noise depends on its row, so the first half alone says what it says in the whole batch."""
    sequences, responses, mask = sample(policy, PromptBatch(prompts.tokens, prompts.lengths), sampling, noise())
    again = sample(policy, PromptBatch(prompts.tokens, prompts.lengths), sampling, noise())
    assert torch.equal(responses, again[1])
    assert torch.equal(mask, again[2])
    assert int(sequences.lengths.max()) == sequences.tokens.shape[1]


def test_pieces_join_to_the_whole():
    values = torch.arange(20.0).view(10, 2)
    (halved,) = in_pieces(lambda piece: (piece / 2,), 3, values)
    assert torch.equal(halved, values / 2)


def test_values_are_the_critics_before_each_token(scored, critic):
    rollout, _ = shape_rollout(scored, critic, torch.tensor(0.0), Shaping(), rows=5)
    for i, row, start, count in rows(scored):
        with torch.no_grad():
            before = critic.token_values(row[None])[0, start - 1 : -1]
        assert torch.allclose(rollout.values[i, :count], before, atol=1e-4)
        assert not rollout.values[i, count:].any()


def test_the_score_lands_on_the_last_token_and_a_missing_end_replaces_it(scored, critic, sampling):
    rewards = shape_rollout(scored, critic, torch.tensor(0.0), Shaping(missing_eos_score=-3.0), rows=5)[1]
    for i, row, _, count in rows(scored):
        expected = float(sampling.eos_id) if row[-1] == sampling.eos_id else -3.0
        assert rewards[i].tolist() == [0.0] * (count - 1) + [expected] + [0.0] * (rewards.shape[1] - count)


def test_without_a_missing_end_score_the_reward_is_trusted(scored, critic):
    rewards = shape_rollout(scored, critic, torch.tensor(0.0), Shaping(missing_eos_score=None), rows=5)[1]
    assert torch.allclose(rewards.sum(1), scored.scores)


def test_each_token_pays_for_its_own_kl(scored, critic):
    free, paid = (shape_rollout(scored, critic, torch.tensor(coef), Shaping(), rows=5)[1] for coef in (0.0, 0.2))
    difference = torch.where(scored.mask, scored.logprobs - scored.ref_logprobs, 0.0)
    assert torch.allclose(free - paid, 0.2 * difference, atol=1e-4)  # scores of 299 round at 3e-5


def test_advantages_are_whitened_over_what_counts(scored, critic):
    rollout, _ = shape_rollout(scored, critic, torch.tensor(0.1), Shaping(), rows=5)
    counted = rollout.advantages[scored.mask]
    assert counted.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert counted.var(unbiased=False).item() == pytest.approx(1.0, abs=1e-3)
    assert not rollout.advantages[~scored.mask].any()


def test_whitened_rewards_keep_their_mean(scored, critic):
    raw, whitened = (
        shape_rollout(scored, critic, torch.tensor(0.1), Shaping(whiten_rewards=on), rows=5)[1][scored.mask]
        for on in (False, True)
    )
    assert whitened.mean().item() == pytest.approx(raw.mean().item(), rel=1e-4)
    assert whitened.var(unbiased=False).item() == pytest.approx(1.0, abs=1e-3)


def test_returns_against_a_naive_recursion(scored, critic):
    shaping = Shaping(gamma=0.9, lam=0.8, whiten_advantages=False)
    rollout, rewards = shape_rollout(scored, critic, torch.tensor(0.1), shaping, rows=5)
    for i, _, _, count in rows(scored):
        advantage, following = 0.0, 0.0
        for t in reversed(range(count)):
            value = rollout.values[i, t].item()
            advantage = rewards[i, t].item() + 0.9 * following - value + 0.9 * 0.8 * advantage
            following = value
            assert rollout.advantages[i, t].item() == pytest.approx(advantage, abs=1e-3)
            assert rollout.returns[i, t].item() == pytest.approx(advantage + value, abs=1e-3)


def test_nothing_in_a_rollout_has_a_gradient(scored, critic):
    rollout, rewards = shape_rollout(scored, critic, torch.tensor(0.1), Shaping(), rows=5)
    assert not any(field.requires_grad for field in (*rollout, rewards, scored.logprobs, scored.scores))
