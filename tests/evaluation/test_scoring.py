"""Scores of continuations against one row at a time through transformers, and against what probability demands."""

import math
import random

import pytest
import torch
from transformers import GPT2LMHeadModel

from gpt_modules.backbone import GPT, generate, load_pretrained
from gpt_modules.errors import UserError
from gpt_modules.evaluation import continuation_logprobs, scoring


@pytest.fixture
def gpt(micro) -> GPT:
    """With dropout 0.3, and in training mode: scoring has to see to that itself."""
    return load_pretrained(str(micro.gpt), kind="gpt").train()


def ragged_rows(vocab_size, count=40, context=60, continuation=20):
    """Rows of which some lose a part of their context to the 32 positions."""
    rng = random.Random(0)
    draw = lambda longest: [rng.randrange(vocab_size) for _ in range(rng.randint(1, longest))]  # noqa: E731
    return [(draw(context), draw(continuation)) for _ in range(count)]


@torch.no_grad()
def naive(model, context, continuation, limit=32):
    tokens = [*context, *continuation][-limit - 1 :]
    logprobs = model(torch.tensor([tokens[:-1]])).logits[0].log_softmax(-1)
    scored = continuation if context else continuation[1:]
    last = logprobs[-len(scored) :]
    nats = sum(float(row[token]) for row, token in zip(last, scored, strict=True))
    return nats, len(scored), all(int(row.argmax()) == token for row, token in zip(last, scored, strict=True))


@pytest.mark.parametrize("max_tokens", [1, 100, 8192])
def test_as_one_row_at_a_time_through_transformers(micro, gpt, max_tokens):
    oracle = GPT2LMHeadModel.from_pretrained(micro.gpt).eval()
    rows = [*ragged_rows(micro.vocab_size), ([], [1, 2]), ([], list(range(33))), ([5], list(range(32)))]
    for (context, continuation), score in zip(rows, continuation_logprobs(gpt, rows, max_tokens), strict=True):
        nats, count, greedy = naive(oracle, context, continuation)
        assert score.logprob == pytest.approx(nats, abs=1e-4)
        assert (score.tokens, score.greedy) == (count, greedy)
        assert score.mean == pytest.approx(nats / count)


def test_the_parts_of_a_continuation_multiply(gpt):
    head, tail, context = [7, 8, 9], [3, 2], [1, 4]
    whole, first, second = continuation_logprobs(gpt, [(context, head + tail), (context, head), (context + head, tail)])
    assert whole.logprob == pytest.approx(first.logprob + second.logprob, abs=1e-4)
    assert whole.tokens == first.tokens + second.tokens


def test_all_continuations_of_one_token_have_probability_one(micro, gpt):
    scores = continuation_logprobs(gpt, [([3, 1], [token]) for token in range(gpt.config.vocab_size)])
    assert sum(math.exp(score.logprob) for score in scores) == pytest.approx(1.0, abs=1e-5)
    assert sum(score.greedy for score in scores) == 1


def test_what_greedy_decoding_says_is_greedy_and_nothing_else(gpt):
    prompts = [[1, 2, 3], [9], [40, 41]]
    said = generate(gpt, prompts, max_new_tokens=6, eos_id=None, temperature=0.0).tokens.tolist()
    other = [[*answer[:-1], answer[-1] - 1] for answer in said]
    assert all(score.greedy for score in continuation_logprobs(gpt, list(zip(prompts, said, strict=True))))
    assert not any(score.greedy for score in continuation_logprobs(gpt, list(zip(prompts, other, strict=True))))


def test_logits_are_held_a_chunk_at_a_time(micro, gpt, monkeypatch):
    rows, held = ragged_rows(micro.vocab_size), []
    expected = continuation_logprobs(gpt, rows)
    original = scoring.token_logprobs
    monkeypatch.setattr(scoring, "_CPU_CHUNK_ELEMENTS", 7 * gpt.config.vocab_size)
    monkeypatch.setattr(
        scoring, "token_logprobs", lambda logits, *a: (held.append(len(logits)), original(logits, *a))[1]
    )
    assert [score.logprob for score in continuation_logprobs(gpt, rows)] == pytest.approx(
        [score.logprob for score in expected]
    )
    assert max(held) == 7
    assert sum(held) == sum(score.tokens for score in expected), "only what is scored meets the head"


def test_the_mode_of_every_module_and_the_generator_stay(gpt):
    gpt.decoder.blocks[0].eval()
    before, state = [module.training for module in gpt.modules()], torch.get_rng_state()
    continuation_logprobs(gpt, [([1], [2, 3])])
    assert [module.training for module in gpt.modules()] == before
    assert torch.equal(torch.get_rng_state(), state)
    assert len(set(before)) == 2


def test_compiled_blocks_are_not_compiled_anew(gpt, monkeypatch):
    expected = continuation_logprobs(gpt, [([1], [2, 3])])
    gpt.decoder.compile_blocks()
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", lambda *_, **__: pytest.fail("compiled"))
    assert continuation_logprobs(gpt, [([1], [2, 3])]) == expected


def test_what_cannot_be_scored(gpt):
    with pytest.raises(UserError, match=r"row 1: found a continuation of 33 tokens, expected at most n_positions = 32"):
        continuation_logprobs(gpt, [([1], [1]), ([1], [2] * 33)])
    for row in (([1], []), ([], [1])):
        with pytest.raises(ValueError, match="row 0: found a continuation without a token to score"):
            continuation_logprobs(gpt, [row])
    assert continuation_logprobs(gpt, []) == []
