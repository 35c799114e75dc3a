"""Rows that come and go: each says what `generate` says to it alone, in whatever company, bit for bit."""

import math
import random

import pytest
import torch

from gpt_modules.backbone import GPT, DecoderConfig, generate, noise_of
from gpt_modules.backbone.decoding import batching
from gpt_modules.backbone.decoding.batching import Batch, Row, bytes_of, fitting_rows
from gpt_modules.backbone.decoding.step import SamplingRule
from gpt_modules.errors import UserError

LLAMA = {"positions": "rotary", "norm_kind": "rms", "mlp": "swiglu", "n_kv_head": 1, "tied": False, "qkv_bias": False,
         "proj_bias": False, "mlp_bias": False}  # fmt: skip
RULES = [SamplingRule(), SamplingRule(0.0), SamplingRule(0.7, 5), SamplingRule(1.3, None, 0.8)]


def make(**changes):
    torch.manual_seed(1)
    sizes = {"vocab_size": 37, "n_positions": 60, "n_layer": 2, "n_head": 2, "n_embd": 12}
    model = GPT(DecoderConfig(**{**sizes, **changes})).eval()
    with torch.no_grad():  # fresh weights repeat one token for ever; these do not
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


def rows(count=14, most=20, **more):
    draw = random.Random(0)
    prompts = [[draw.randrange(37) for _ in range(draw.randrange(1, 30))] for _ in range(count)]
    return [Row(prompt, 1 + i % most, RULES[i % 4], noise_of(str(i)), frozenset({3}), **more)
            for i, prompt in enumerate(prompts)]  # fmt: skip


def run(batch, waiting, at_turn=lambda turn: None):
    """{row: what it was told}, all rows joining as soon as there is room."""
    found, waiting, turn = {row: [] for row in waiting}, list(waiting), 0
    while waiting or len(batch):
        while waiting and batch.has_room(waiting[0]):
            batch.join(waiting.pop(0))
        at_turn(turn)
        for said in batch.turn():
            found[said.row].append(said)
        turn += 1
    return found


def told(found):
    return [[(said.token, said.likely, said.end) for said in each] for each in found.values()]


@pytest.mark.parametrize("changes", [{}, {"norm": "post"}, {"attention": ("dense", "banded"), "window": 5}, LLAMA])
def test_a_row_says_what_generate_says(changes):
    model = make(**changes).double()
    for row, each in run(Batch(model, 4), rows()).items():
        place = int(row.most)  # its noise is of its number
        temperature, top_k, top_p = row.rule
        drawn = generate(model, [row.prompt], max_new_tokens=place, eos_id=3, temperature=temperature, top_k=top_k,
                         top_p=top_p, generator=noise_of(str(place - 1)))  # fmt: skip
        ids = drawn.tokens[drawn.mask].tolist()
        assert [said.token for said in each] == ids
        assert [said.end for said in each] == [None] * (len(ids) - 1) + ["stop" if ids[-1] == 3 else "length"]


@pytest.mark.parametrize("changes", [{}, {"n_embd": 16}, {"n_embd": 40}, LLAMA])
def test_company_changes_no_bit(changes, monkeypatch):
    """Tokens and log-probabilities in float32: alone, in full batches, and with prompts that are read in pieces."""
    monkeypatch.setattr(batching, "PIECE", 8)
    model = make(**changes)
    multiple = fitting_rows(model, 8)
    alone = [told(run(Batch(model, 8, multiple=multiple), [row]))[0] for row in rows(top=2)]
    for most, order in ((8, 1), (3, 1), (8, -1)):
        together = told(run(Batch(model, most, multiple=multiple), rows(top=2)[::order]))
        assert together[::order] == alone


def test_rows_that_leave_change_no_other():
    model = make()
    alone = told(run(Batch(model, 8, multiple=4), rows()))
    batch, some = Batch(model, 8, multiple=4), rows()
    found = run(batch, some, lambda turn: batch.leave(some[turn]) if turn < 5 else None)
    assert told(found)[5:] == alone[5:]
    assert (len(batch), batch.held_bytes) == (0, 0)


def test_a_long_prompt_stops_nobody(monkeypatch):
    monkeypatch.setattr(batching, "PIECE", 4)
    batch = Batch(make(), 4)
    short, long = Row([5], 30, SamplingRule(0.0)), Row([1] * 29, 1, SamplingRule(0.0))
    batch.join(short)
    batch.turn()
    batch.join(long)
    turns = [[said.row for said in batch.turn()] for _ in range(8)]
    assert turns == [[short]] * 7 + [[long, short]]


def test_what_is_held_is_bounded():
    model = make()
    row = Row([1] * 9, 2)
    assert bytes_of(row, model) == 2 * 2 * 10 * 12 * 4  # layers, keys and values, tokens, width, bytes
    batch = Batch(model, 9, cache_bytes=2.5 * bytes_of(row, model))
    for expected in (True, True, False):
        assert batch.has_room(row) is expected
        if expected:
            batch.join(Row([1] * 9, 2))
    assert Batch(model, 1, cache_bytes=1).has_room(row)  # or it would wait for ever
    full = Batch(model, 1)
    full.join(row)
    assert not full.has_room(Row([1], 1))


def test_log_probabilities_are_the_models_own(monkeypatch):
    monkeypatch.setattr(batching, "PIECE", 4)
    model = make().double()
    row = Row([4, 8, 15, 16, 23, 42 % 37, 9, 2, 1], 3, SamplingRule(0.5, 2), noise_of("x"), top=3, echo=True)
    said = next(iter(run(Batch(model, 1), [row]).values()))
    tokens = [*row.prompt, *(each.token for each in said)]
    logprobs = model(torch.tensor([tokens]))[0].detach().float().log_softmax(-1)
    found = [*row.prompt_likely, *(each.likely for each in said)]
    assert [likely.token for likely in found] == tokens
    assert math.isnan(found[0].logprob)
    assert found[0].top == ()
    for place, likely in enumerate(found[1:]):
        best = logprobs[place].topk(3)
        assert likely.logprob == pytest.approx(float(logprobs[place, likely.token]), abs=1e-6)
        assert [token for token, _ in likely.top] == best.indices.tolist()


def test_a_prompt_may_be_read_alone():
    row = Row([1, 2, 3], 0, echo=True, top=1)
    ((said,),) = run(Batch(make(), 1), [row]).values()
    assert (said.token, said.end, len(row.prompt_likely)) == (None, "length", 3)


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (Row([], 1), "prompt: found no tokens, expected at least one"),
        (Row([1] * 50, 11), "prompt: found 50 tokens and 11 to say, expected at most 60 together"),
        (Row([1, 37], 1), "prompt: found token 37, expected 0 to 36"),
        (Row([1], 1, SamplingRule(-1.0)), "temperature: found -1.0"),
    ],
)
def test_what_cannot_be_continued(row, line):
    with pytest.raises(UserError) as refused:
        Batch(make(), 1).join(row)
    assert str(refused.value).startswith(line)


@pytest.mark.parametrize(("wrong", "expected"), [(lambda n: False, 4), (lambda n: n % 8 > 0, 8), (lambda n: True, 12)])
def test_a_library_that_sums_by_the_number_of_rows_is_found_out(monkeypatch, wrong, expected):
    """A batch is filled up until the number of rows makes no difference; always to the full, if nothing else helps."""
    model = make()
    hidden = model.hidden
    off = lambda tokens: 1e-6 * len(tokens) * wrong(len(tokens))  # noqa: E731
    monkeypatch.setattr(model, "hidden", lambda tokens, **more: hidden(tokens, **more) + off(tokens))
    assert fitting_rows(model, 12) == expected
