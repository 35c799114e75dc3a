"""Scores of continuations against one row at a time through transformers, and against what probability demands."""

import math
import random
import weakref
from types import SimpleNamespace

import pytest
import torch
from conftest import shaken
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2LMHeadModel

from gpt_modules.backbone import GPT, KVCache, generate, load_pretrained
from gpt_modules.errors import UserError
from gpt_modules.evaluation import continuation_logprobs
from gpt_modules.evaluation.tasks import prefixes, scoring


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


def few_shot(vocab_size, shots=3, items=6, choices=4):
    """Rows as few-shot multiple choice makes them: demonstrations, a question, answers that may begin alike, be one
    token, or begin with another one.
    """
    rng = random.Random(1)
    draw = lambda least, most: [rng.randrange(vocab_size) for _ in range(rng.randint(least, most))]  # noqa: E731
    rows = []
    for _ in range(shots):
        demonstrations = draw(40, 60)
        for _ in range(items):
            question, first = demonstrations + draw(18, 30), draw(1, 3)
            answers = [first, first + draw(1, 2), *(draw(1, 6) for _ in range(choices - 2))]
            rows += [(question, answer) for answer in answers]
    return rows


@torch.no_grad()
def one_by_one(model, rows):
    """Each row alone and whole, without a cache."""
    limit, was = model.config.n_positions, model.training
    found = [naive(lambda tokens: SimpleNamespace(logits=model.eval()(tokens)), *row, limit) for row in rows]
    model.train(was)
    return found


@pytest.fixture(params=["dense", "banded"])
def long_gpt(request, micro) -> GPT:
    """128 positions, so that demonstrations fit; the banded one sees 9 tokens back in every second layer."""
    banded = {"attention": ("dense", "banded"), "window": 9} if request.param == "banded" else {}
    return shaken(GPT(micro.config(n_positions=128, **banded)), 5).train()


@pytest.mark.parametrize("max_tokens", [1, 150, 600, 8192])
def test_shared_beginnings_change_nothing(micro, long_gpt, max_tokens, monkeypatch):
    rows = few_shot(micro.vocab_size)
    random.Random(2).shuffle(rows)
    monkeypatch.setattr(scoring, "_CPU_OVERHEAD", 8)
    scores = continuation_logprobs(long_gpt.double(), rows, max_tokens)
    for score, (nats, count, greedy) in zip(scores, one_by_one(long_gpt, rows), strict=True):
        assert score.logprob == pytest.approx(nats, abs=1e-9)
        assert (score.tokens, score.greedy) == (count, greedy)


def test_in_float32_as_well(micro, long_gpt):
    rows = few_shot(micro.vocab_size)
    for score, (nats, *_) in zip(continuation_logprobs(long_gpt, rows), one_by_one(long_gpt, rows), strict=True):
        assert score.logprob == pytest.approx(nats, rel=1e-5)


TOKEN_IDS = st.integers(0, 3)
TEXTS = st.lists(TOKEN_IDS, max_size=24)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(TEXTS, st.lists(TOKEN_IDS, min_size=2, max_size=8)), min_size=1, max_size=12), st.data())
def test_any_rows_of_any_tree(tiny_tree, rows, data):
    """Few different tokens and rows that are made of others' parts: beginnings are shared at every depth."""
    for _ in range(data.draw(st.integers(0, 12))):
        context, continuation = data.draw(st.sampled_from(rows))
        rows.append((context + continuation[:-1], data.draw(st.lists(TOKEN_IDS, min_size=2, max_size=8))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefixes, "_LEAST_GAIN", 1)
        patch.setattr(scoring, "_CPU_OVERHEAD", data.draw(st.sampled_from([0, 5, 1000])))
        scores = continuation_logprobs(tiny_tree, rows, data.draw(st.sampled_from([1, 40, 8192])))
    for score, (nats, count, greedy) in zip(scores, one_by_one(tiny_tree, rows), strict=True):
        assert score.logprob == pytest.approx(nats, abs=1e-9)
        assert (score.tokens, score.greedy) == (count, greedy)


@pytest.fixture(scope="module")
def tiny_tree(micro):
    torch.manual_seed(0)
    return shaken(GPT(micro.config(vocab_size=4)), 6).double()


def test_what_rows_have_in_common_is_read_once(micro, long_gpt, monkeypatch):
    """6 questions of 4 answers behind the same demonstrations: the tokens that the model reads, counted by hand."""
    demonstrations, read = list(range(64)), []
    rows = [(demonstrations + [100 + i] * 20, [k, 9]) for i in range(6) for k in range(4)]
    original = long_gpt.hidden
    monkeypatch.setattr(long_gpt, "hidden", lambda tokens, **k: (read.append(tokens.numel()), original(tokens, **k))[1])
    monkeypatch.setattr(scoring, "_CPU_OVERHEAD", 16)
    continuation_logprobs(long_gpt, rows)
    assert sum(read) == 64 + 6 * (20 + 4)
    read.clear()
    continuation_logprobs(long_gpt, [(demonstrations, [k]) for k in range(50)])
    assert read == [64], "answers of one token: one row"
    read.clear()
    continuation_logprobs(long_gpt, [(demonstrations[:16], [k, k, k]) for k in (0, 1)])
    assert read == [2 * 18], "16 tokens saved are less than the call they would cost: one batch"
    read.clear()
    continuation_logprobs(long_gpt, [([k, k], [k]) for k in range(50)])
    assert read == [100], "nothing in common: one batch"


@pytest.mark.parametrize("max_tokens", [200, 400])
def test_tokens_held_are_bounded(micro, long_gpt, max_tokens, monkeypatch):
    """All caches alive at once, and what is read beside them, never hold more than was allowed."""
    alive, largest = weakref.WeakSet(), []
    made, read = KVCache.__init__, long_gpt.hidden

    def count(cache, config, batch, capacity, **options):
        made(cache, config, batch, capacity, **options)
        cache.tokens = batch * capacity
        alive.add(cache)

    def watched(tokens, cache=None):
        largest.append(sum(each.tokens for each in alive) or tokens.numel())
        return read(tokens, cache=cache)

    monkeypatch.setattr(KVCache, "__init__", count)
    monkeypatch.setattr(long_gpt, "hidden", watched)
    monkeypatch.setattr(scoring, "_CPU_OVERHEAD", 8)
    continuation_logprobs(long_gpt, few_shot(micro.vocab_size), max_tokens)
    assert max_tokens / 8 < max(largest) <= max_tokens  # what is forked to be read once is not held again
    assert not alive


def test_batches_are_padded_no_more_than_a_batch_costs(micro, long_gpt, monkeypatch):
    """Rows of 1 to 60 tokens: no batch has more padding than its call of the model costs."""
    rng, shapes, original = random.Random(0), [], long_gpt.hidden
    rows = [([rng.randrange(micro.vocab_size) for _ in range(width)], [1]) for width in range(1, 61)]
    monkeypatch.setattr(long_gpt, "hidden", lambda tokens, **k: (shapes.append(tokens.shape), original(tokens, **k))[1])
    continuation_logprobs(long_gpt, rows)
    cells = sum(batch * width for batch, width in shapes)
    assert cells - sum(range(1, 61)) <= scoring._CPU_OVERHEAD * len(shapes)
    assert len(shapes) < 20
