"""A rollout against naive loops: one row at a time, no padding, no cache, no pieces."""

import contextlib
import random
import sys
import types

import lightning.pytorch as L
import pytest
import torch
from ppo_variants import adam, weights

from gpt_modules.backbone import generate, load_pretrained
from gpt_modules.data.batches import PromptBatch
from gpt_modules.functional import linear_logprobs
from gpt_modules.training.ppo import VALIDATION
from gpt_modules.training.rl import rollout as rollout_module
from gpt_modules.training.rl.models import on_trunk
from gpt_modules.training.rl.rewards import Scores
from gpt_modules.training.rl.rollout import (
    assemble,
    in_pieces,
    inference,
    noise,
    response_logprobs,
    sample,
    score_responses,
    value_responses,
)
from gpt_modules.training.rl.sequences import Sequences
from gpt_modules.training.rl.settings import (
    Sampling,
    SamplingConfig,
)

TEMPERATURE = 0.5
NO_DROPOUT = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0)


KEY = (0, 1)


def seeded(seed=0):
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
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=seeded(5)))
    return moved


@pytest.fixture(scope="module")
def critic(micro):
    return load_pretrained(micro.reward, kind="reward", **NO_DROPOUT).eval().fold_scale()


@pytest.fixture(scope="module")
def prompts(micro):
    lengths = torch.tensor([3, 7, 5, 4, 7, 1, 2, 6] * 4)
    tokens = torch.randint(0, micro.vocab_size, (32, 7), generator=seeded())
    numbers = torch.arange(32)
    return PromptBatch(torch.where(torch.arange(7) < lengths[:, None], tokens, 0), lengths, numbers, numbers + 100)


@pytest.fixture(scope="module")
def sampling(policy, prompts):
    """The end token is one that the policy says often, so that some answers end and some do not."""
    drawn = generate(
        policy,
        [row[:n].tolist() for row, n in zip(prompts.tokens, prompts.lengths, strict=True)],
        max_new_tokens=8,
        eos_id=None,
        temperature=TEMPERATURE,
        generator=seeded(),
    )
    return Sampling(8, TEMPERATURE, (int(drawn.tokens.flatten().mode().values),))


def last_token_score(sequences):
    """A reward that depends on the response's text alone: the id of its last token; its spread is a tenth of it."""
    last = sequences.tokens.gather(1, sequences.lengths[:, None] - 1).float()
    return Scores(last[:, 0], last / 10, last)


@pytest.fixture(scope="module")
def scored(policy, reference, prompts, sampling):
    found = score_responses(policy, reference, last_token_score, prompts, sampling, KEY, rows=5)
    assert 3 <= int(found.ended.sum()) <= 29, "both kinds must occur for the tests below to mean something"
    return found


def rows(scored):
    """Row number, whole row without padding, prompt length, response length."""
    tokens, starts, ends, *_ = scored.sequences
    return [(i, tokens[i, : int(ends[i])], int(starts[i]), int(ends[i] - starts[i])) for i in range(len(tokens))]


@torch.no_grad()
def naive_logprobs(model, row, start):
    tempered = (model(row[None])[0, start - 1 : -1] / TEMPERATURE).log_softmax(-1)
    return tempered.gather(1, row[start:, None])[:, 0], -(tempered.exp() * tempered).sum(-1)


def test_assemble_against_a_literal():
    prompts = PromptBatch(
        torch.tensor([[5, 6, 7], [8, 0, 0]]), torch.tensor([3, 1]), torch.arange(2), torch.tensor([4, 9])
    )
    responses, mask = torch.tensor([[1, 2], [3, 4]]), torch.tensor([[True, False], [True, True]])
    tokens, starts, ends, ended, numbers = assemble(prompts, responses, mask, torch.tensor([True, False]))
    assert tokens.tolist() == [[5, 6, 7, 1], [8, 3, 4, 0]]
    assert starts.tolist() == [3, 1]
    assert ends.tolist() == [4, 3]
    assert ended.tolist() == [True, False]
    assert numbers.tolist() == [4, 9]


def test_logprobs_are_those_of_the_sampler(policy, prompts, sampling, scored):
    columns = torch.arange(prompts.tokens.shape[1])
    drawn = generate(
        policy,
        (prompts.tokens, columns < prompts.lengths[:, None]),
        max_new_tokens=8,
        eos_id=sampling.ends,
        temperature=TEMPERATURE,
        generator=noise(KEY, prompts.numbers),
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
    (end,) = sampling.ends
    for i, row, start, count in rows(scored):
        response = row[start:].tolist()
        assert response == scored.responses[i][scored.mask[i]].tolist()
        assert end not in response[:-1]
        assert bool(scored.ended[i]) == (response[-1] == end)
        assert scored.ended[i] or count == 8
        assert not scored.sequences.tokens[i, start + count :].any(), "0 where there is nothing"


@pytest.mark.parametrize("after", [0, 3, 7])
def test_drawing_stops_where_a_response_of_full_length_is_cut(policy, prompts, sampling, after):
    """Ziegler et al. 2019 (code): sample all tokens, cut at the first stop token at or after `truncate_after`, and call
    those without one invalid. The same noise gives the same tokens, to the bit.
    """
    stops = (sampling.ends[0], 17)
    _, whole, everywhere, _ = sample(policy, prompts, sampling._replace(ends=()), KEY)
    assert everywhere.all()
    sequences, responses, mask, _ = sample(policy, prompts, sampling._replace(ends=stops, truncate_after=after), KEY)
    early = 0
    for row, said in enumerate(whole.tolist()):
        cut = next((place for place in range(after, len(said)) if said[place] in stops), None)
        kept = said if cut is None else said[: cut + 1]
        early += any(token in stops for token in kept[:-1])
        assert responses[row][mask[row]].tolist() == kept
        assert not responses[row][~mask[row]].any(), "what is after the cut is padding"
        assert bool(sequences.ended[row]) == (cut is not None)
        assert int(sequences.lengths[row] - sequences.prompt_lengths[row]) == len(kept)
    assert (early > 0) == (after > 0), "a stop token that stands too early is a token like others"


def test_drawing_at_another_temperature_leaves_the_log_probabilities_of_training(policy, reference, prompts, sampling):
    greedy = sampling._replace(draw=0.0)
    scored = score_responses(policy, reference, last_token_score, prompts, greedy, KEY, rows=5)
    other = score_responses(policy, reference, last_token_score, prompts, greedy, (4, 4), rows=5)
    assert torch.equal(scored.responses, other.responses), "without noise"
    for i, row, start, count in rows(scored):
        with torch.no_grad():
            likeliest = policy(row[None])[0, start - 1 : -1].argmax(-1)
        assert torch.equal(row[start:], likeliest)
        assert torch.allclose(scored.logprobs[i, :count], naive_logprobs(policy, row, start)[0], atol=1e-4)


def test_kl_is_zero_between_equals_and_summed_over_a_sequence(policy, prompts, sampling, scored):
    equal = score_responses(policy, policy, last_token_score, prompts, sampling, KEY, rows=5)
    assert torch.equal(equal.sequence_kl(), torch.zeros(32))
    by_hand = [
        sum((scored.logprobs[i, t] - scored.ref_logprobs[i, t]).item() for t in range(n)) for i, _, _, n in rows(scored)
    ]
    assert scored.sequence_kl().tolist() == pytest.approx(by_hand, abs=1e-4)


def test_padding_changes_nothing(policy, reference, critic, prompts, sampling, scored):
    """Three more columns, and rubbish wherever there is padding."""
    wide = torch.randint(1, 100, (32, 10), generator=seeded(3))
    wide[:, :7] = torch.where(torch.arange(7) < prompts.lengths[:, None], prompts.tokens, wide[:, :7])
    padded = score_responses(policy, reference, last_token_score, prompts._replace(tokens=wide), sampling, KEY, rows=32)
    assert torch.equal(padded.responses, scored.responses)
    assert torch.equal(padded.mask, scored.mask)
    assert torch.equal(padded.scores, scored.scores)
    assert torch.equal(padded.spreads, scored.scores[:, None] / 10)
    assert torch.equal(padded.ended, scored.ended)
    assert torch.equal(padded.sequences.rows, prompts.numbers + 100)
    difference = torch.where(scored.mask, padded.logprobs - scored.logprobs, 0.0)
    assert difference.abs().max() < 1e-4
    one, other = (value_responses(critic, s, rows=7) for s in (scored, padded))
    assert (one - other).abs().max() < 1e-4


@pytest.mark.parametrize("rows", [[0], [31], [5, 4, 3], list(range(1, 32, 2))])
def test_an_answer_does_not_depend_on_the_answers_beside_it(policy, prompts, sampling, scored, rows):
    """On the rows that another process has, or on the batch that validation came in: a row's number draws its noise."""
    few = PromptBatch(*(field[rows] for field in prompts))
    _, responses, mask, _ = sample(policy, few, sampling, KEY)
    for row, number in enumerate(rows):
        answer = scored.responses[number][scored.mask[number]].tolist()
        assert responses[row][mask[row]].tolist() == answer


def test_an_answer_is_drawn_anew_with_another_number_or_another_key(policy, prompts, sampling, scored):
    same = prompts._replace(tokens=prompts.tokens[:1].repeat(32, 1), lengths=prompts.lengths[:1].repeat(32))
    _, responses, _, _ = sample(policy, same, sampling, KEY)
    assert len({tuple(row) for row in responses.tolist()}) > 16
    _, others, _, _ = sample(policy, prompts, sampling, (0, 2))
    differ = (others[:, :1] != scored.responses[:, :1]).sum()
    assert differ > 8


def test_noise_is_its_own_for_every_number_and_key():
    numbers = torch.tensor([7, 3, 7])
    first, second, third = (torch.rand(5, generator=one).tolist() for one in noise((0, 1), numbers))
    assert first == third
    draws = [first, second, *(torch.rand(5, generator=noise(key, numbers)[0]).tolist() for key in ((1, 1), (0, 2)))]
    assert len({tuple(draw) for draw in draws}) == 4


class Linear(L.LightningModule):
    """A layer in a run of some precision."""

    trainer = None  # Lightning's property, as a plain attribute

    def __init__(self, precision):
        super().__init__()
        self.trainer, self.layer = types.SimpleNamespace(precision=precision), torch.nn.Linear(2, 2)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("precision", "computed"),
    [
        ("bf16-mixed", torch.bfloat16),
        ("16-mixed", torch.float16),
        ("32-true", torch.float32),
        ("64-true", torch.float32),
    ],
)
def test_inference_has_the_runs_precision_and_leaves_the_module_as_it_was(precision, computed, training):
    module = Linear(precision).train(training)
    with inference(module):
        states = module.layer(torch.ones(1, 2))
        assert not module.training
    assert states.dtype == computed
    assert not states.requires_grad
    assert module.training == training
    assert module.layer(torch.ones(1, 2)).dtype == torch.float32


@pytest.mark.parametrize("size", [1, 3, 10, 64])
def test_pieces_join_to_the_whole(size):
    """In the rows' own order; a piece is as wide as its longest row, and none is wider than one before it must be."""
    lengths, seen = torch.tensor([3, 9, 4, 4, 9, 2, 5, 9, 2, 6]), []
    values, tokens = torch.arange(20.0).view(10, 2), torch.arange(100).view(10, 10)

    def halves(part, own):
        seen.append((part.tokens.shape, part.lengths.tolist()))
        return own / 2, part.tokens[:, 0]

    halved, first = in_pieces(
        halves, size, Sequences(tokens, lengths - 1, lengths, lengths > 3, torch.arange(10)), values
    )
    assert torch.equal(halved, values / 2)
    assert torch.equal(first, tokens[:, 0])
    assert [shape for shape, _ in seen] == [(len(own), max(own)) for _, own in seen]
    assert [n for _, own in seen for n in own] == sorted(lengths.tolist())


def test_only_tokens_that_count_meet_the_head(policy, prompts, sampling, scored, monkeypatch):
    """Not one logit more; what stands in the other cells is never read, nor answered."""
    rows = []

    def counting(hidden, *rest):
        rows.append(len(hidden))
        return linear_logprobs(hidden, *rest)

    monkeypatch.setattr(rollout_module, "linear_logprobs", counting)
    dirty = torch.where(scored.mask, scored.responses, 10**9)
    text = (scored.sequences.tokens, scored.sequences.prompt_lengths, dirty, scored.mask, TEMPERATURE)
    with torch.no_grad():
        logprobs, entropy = response_logprobs(policy, *text)
    assert rows == [int(scored.mask.sum())]
    assert scored.mask.float().mean() < 0.9
    assert torch.allclose(logprobs[scored.mask], scored.logprobs[scored.mask], atol=1e-4)
    assert not logprobs[~scored.mask].any()
    assert not entropy[~scored.mask].any()


def test_values_are_the_critics_before_each_token(scored, critic):
    values = value_responses(critic, scored, rows=5)
    for i, row, start, count in rows(scored):
        with torch.no_grad():
            before = critic.token_values(row[None])[0, start - 1 : -1]
        assert torch.allclose(values[i, :count], before, atol=1e-4)
        assert not values[i, count:].any()


def test_a_critic_on_the_policys_trunk_values_in_the_same_pass(policy, reference, critic, prompts, sampling):
    """What it would say alone, without another pass of the trunk."""
    alone = on_trunk(policy, critic.head)
    passes = []
    trunk = policy.decoder.register_forward_hook(lambda *_: passes.append(1))
    found = score_responses(policy, reference, last_token_score, prompts, sampling, KEY, 32, alone)
    with_values = len(passes)
    assert value_responses(alone, found, rows=5) is found.values
    score_responses(policy, reference, last_token_score, prompts, sampling, KEY, 32)
    assert len(passes) == 2 * with_values, "no more of them than without a critic"
    trunk.remove()
    expected = value_responses(alone, found._replace(values=None), rows=5)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-5)
    assert found.values.abs().max() > 0.1


def test_the_samplers_own_logprobs_are_kept(policy, scored):
    """They are those of the training forward, but for rounding: nothing lies between the two."""
    apart = torch.where(scored.mask, scored.sampled - scored.logprobs, 0.0)
    assert 0 < apart.abs().max() < 1e-4
    assert not scored.sampled[~scored.mask].any()


def test_nothing_scored_has_a_gradient(scored, critic):
    fields = (scored.logprobs, scored.ref_logprobs, scored.entropy, scored.scores, value_responses(critic, scored, 5))
    assert not any(field.requires_grad for field in fields)


# --- in a run ---


def test_each_iteration_draws_anew(fit, ppo, monkeypatch):
    """The same prompts to the same policy: only the noise can differ, and it does not with the same seed."""

    def answers(**settings):
        module, data = ppo(optimizer=adam(0.0), **settings)
        prompts, collect, seen = data.prompts, module.collect, []
        score = module._score
        monkeypatch.setattr(module, "_score", lambda batch, draw: draws.append(draw) or score(batch, draw))
        monkeypatch.setattr(data, "prompts", lambda iteration, *processes: prompts(0, *processes))
        monkeypatch.setattr(module, "collect", lambda: seen.append(collect()) or seen[-1])
        fit(module, data, max_epochs=3, limit_val_batches=0)
        return [rollout.responses.tolist() for rollout in seen]

    draws = []
    first, second, third = answers()
    assert first != second != third != first
    assert len({VALIDATION, *draws}) == 4, "and none is that of validation"
    assert answers() == [first, second, third]
    assert answers(seed=1)[0] != first


def test_a_rollout_tells_how_far_its_sampler_is(fit, ppo, caplog):
    logger = fit(*ppo(temperature=0.5, optimizer=adam(1e-2)), max_epochs=2).logger
    assert max(logger.values("sampler/kl")) < 1e-6
    assert max(logger.values("sampler/max_prob_error")) < 1e-4
    assert not [message for message in caplog.messages if "sampler/kl" in message]


def test_a_sampler_of_another_temperature_is_told(fit, ppo, caplog, monkeypatch):
    """Mistakes of this kind are silent elsewhere: the KL is off, and nothing else shows it."""
    draw = rollout_module.generate
    monkeypatch.setattr(
        rollout_module, "generate", lambda *given, **named: draw(*given, **named | {"temperature": 1.3})
    )
    logger = fit(*ppo(), limit_val_batches=0).logger
    assert logger.values("sampler/kl")[0] > 1e-3
    assert [message for message in caplog.messages if message.startswith("sampler/kl: found ")]


def test_neither_a_small_cache_nor_recomputed_activations_change_a_run(fit, ppo):
    """One row at a time, and every block's activations twice: the same answers, and the same weights bit for bit."""

    def run(**memory):
        module, data = ppo(episodes=8, optimizer=adam(1e-2), minibatches=2, **memory)
        fit(module, data, limit_val_batches=0)
        return module.rollout, weights(module), module.sampling.cache_bytes

    (rollout, learnt, room), (in_turns, same, little) = run(), run(cache_gb=1e-9, recompute=True)
    assert torch.equal(rollout.responses, in_turns.responses)
    assert all(torch.equal(value, same[name]) for name, value in learnt.items())
    assert (room, little) == (4e9, 1.0)


def test_random_numbers_of_the_process_do_not_matter(fit, ppo):
    """Sampling and the order of minibatches have generators of their own."""
    scores = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        scores.append(fit(*ppo(optimizer=adam(1e-3)), max_epochs=2).logger.values("train/loss"))
    assert scores[0] == scores[1]


def test_a_response_ends_at_the_recipes_stop_and_the_reward_reads_it_to_there(fit, ppo, micro, functions):
    """No answer of 1 to 3 tokens; the last kept token is a stop, or there are eight. The function sees the cut text."""
    stop = micro.tokenizer.encode("o")[0]
    seen = []
    sys.modules["toy_rewards"].watch = lambda _, responses, ended, token_ids: (
        seen.extend(zip(responses, ended, token_ids, strict=True)) or [0.0] * len(responses)
    )
    stops = SamplingConfig(stop=["o", stop + 1, "<|endoftext|>"], truncate_after=3)
    module, data = ppo(episodes=64, rewards="toy_rewards:watch", sampling=stops, optimizer=adam(0.0))
    trainer = fit(module, data, limit_val_batches=0)
    assert module.sampling.ends == (stop, stop + 1, micro.tokenizer.eos_id)
    assert len({ended for _, ended, _ in seen}) == 2
    for text, ended, ids in seen:
        assert ended == (len(ids) > 3 and ids[-1] in module.sampling.ends)
        assert not any(token in module.sampling.ends for token in ids[3:-1])
        assert ended or len(ids) == 8
        assert text == micro.tokenizer.decode(ids)
    assert trainer.logger.values("response/ended") == [sum(ended for _, ended, _ in seen) / 64]
    responses = module.rollout.responses
    padded = [ids + [0] * (responses.shape[1] - len(ids)) for _, _, ids in seen]
    assert sorted(responses.tolist()) == sorted(padded)


def test_a_process_without_prompts_takes_part_in_what_the_others_gather(fit, ppo, monkeypatch):
    """Model after model, in the order in which those with prompts need them; of shards it would be waited for."""
    module, data = ppo()
    fit(module, data, limit_val_batches=0)
    needed = []

    def noted(*models):
        if models:
            needed.append(models)
        return contextlib.nullcontext(*models[:1])

    for name in ("gathered", "held"):
        monkeypatch.setattr(rollout_module, name, noted)
    prompts = data.prompts(0)
    assert module._score(prompts, VALIDATION) is not None
    with_prompts = needed.copy()
    needed.clear()
    assert module._score(PromptBatch(*(field[:0] for field in prompts)), VALIDATION) is None
    (reward,) = module.frozen.reward.models().values()
    assert needed == with_prompts == [(module.policy,), (module.frozen.reference,), (reward,)]
