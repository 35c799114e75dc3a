"""Episodes as tensors, against rows worked by hand."""

import logging

import pytest
import torch
from tokenizers import Tokenizer as Backend

from gpt_modules.data.episodes.encoder import EpisodeEncoder
from gpt_modules.data.episodes.families import Episode, Example
from gpt_modules.data.text.edges import set_begin
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError

X = -100
ONE = Episode([Example("a>", "b"), Example("ba>", "ab")], [Example("b>", "a")])
OTHER = Episode([Example("b>", "b"), Example("a>", "a")], [Example("abb>", "abb")])


@pytest.fixture(scope="module")
def tokenizer():
    """Ids: 0 unknown, 1 line break, 2 `>`, 3 `a`, 4 `b`, 5 end of text, and for a classifier 6 to 8."""
    return Tokenizer.train(["a>b\n"], 16, "characters")


def rows(part):
    return [tensor.tolist() for tensor in (*part.inputs, part.targets)]


def test_one_example_a_row(tokenizer):
    batch = EpisodeEncoder(tokenizer, 16).encode([ONE, OTHER])
    assert rows(batch.support) == [
        [[[3, 2, 0, 0], [4, 3, 2, 3]], [[4, 2, 0, 0], [3, 2, 0, 0]]],
        [[[X, 4, X, X], [X, X, 3, 4]], [[X, 4, X, X], [X, 3, X, X]]],
    ]
    assert rows(batch.query) == [
        [[[4, 2, 0, 0, 0, 0]], [[3, 4, 4, 2, 3, 4]]],
        [[[X, 3, X, X, X, X]], [[X, X, X, 3, 4, 4]]],
    ]


@pytest.mark.parametrize("encode", ["encode", "encode_in_context", "encode_in_one_row"])
def test_a_row_begins_as_every_sequence_of_its_family(tokenizer, encode):
    """The context has room for one token less, and nothing else changes."""
    backend = Backend.from_str(tokenizer.to_json())
    set_begin(backend, tokenizer.eos)
    begun = getattr(EpisodeEncoder(Tokenizer(backend, tokenizer.eos), 9), encode)([ONE])
    plain = getattr(EpisodeEncoder(tokenizer, 8), encode)([ONE])
    sets = {"encode": ("support", "query"), "encode_in_context": ("rows",)}.get(encode)
    for a, b in [(begun, plain)] if sets is None else [(getattr(begun, name), getattr(plain, name)) for name in sets]:
        assert a.inputs[0][..., 1:].equal(b.inputs[0])
        assert a.inputs[0][..., 0].eq(tokenizer.eos_id).all()
        assert a.targets[..., 1:].equal(b.targets)
        assert a.targets[..., 0].eq(X).all()


def test_a_query_behind_its_support_set(tokenizer):
    found = EpisodeEncoder(tokenizer, 16).encode_in_context([Episode(ONE.support, [*ONE.query, Example("a>", "a")])])
    read = [3, 2, 4, 1, 4, 3, 2, 3, 4, 1]
    assert rows(found.rows) == [[[[*read, 4, 2], [*read, 3, 2]]], [[[*[X] * 11, 3], [*[X] * 11, 3]]]]
    assert found.shown.tolist() == [[2, 2]]


def test_all_in_one_row(tokenizer):
    found = EpisodeEncoder(tokenizer, 16).encode_in_one_row([ONE, OTHER])
    assert rows(found) == [
        [[[3, 2, 4, 1, 4, 3, 2, 3, 4, 1, 4, 2, 0, 0]], [[4, 2, 4, 1, 3, 2, 3, 1, 3, 4, 4, 2, 3, 4]]],
        [[[X, 4, X, X, X, X, 3, 4, X, X, X, 3, X, X]], [[X, 4, X, X, X, 3, X, X, X, X, X, 3, 4, 4]]],
    ]


@pytest.mark.parametrize(("context", "shown"), [(12, 2), (11, 1), (8, 1), (7, 0), (2, 0)])
def test_what_does_not_fit_in_context_is_left_out_from_the_front(tokenizer, context, shown, caplog):
    encoder = EpisodeEncoder(tokenizer, context)
    found = encoder.encode_in_context([ONE])
    fewer = EpisodeEncoder(tokenizer, 16).encode_in_context([Episode(ONE.support[2 - shown :], ONE.query)])
    assert found.shown.tolist() == [[shown]]
    assert rows(found.rows) == rows(fewer.rows)
    encoder.encode_in_context([ONE])
    assert len(caplog.records) == int(shown < 2), "said once"
    whole = EpisodeEncoder(tokenizer, 16).encode_in_one_row([Episode(ONE.support[2 - shown :], ONE.query)])
    assert rows(encoder.encode_in_one_row([ONE])) == rows(whole)


def test_nothing_to_show_is_the_query_alone(tokenizer):
    encoder = EpisodeEncoder(tokenizer, 16)
    alone = [Episode([], ONE.query)]
    batch = encoder.encode(alone)
    assert rows(encoder.encode_in_context(alone).rows) == rows(batch.query)
    assert batch.support.targets.shape == (1, 0, 0)


def test_a_long_prompt_loses_its_beginning_and_never_the_response(tokenizer, caplog):
    encoder = EpisodeEncoder(tokenizer, 4)
    episode = Episode([Example("aabbab>", "bb")], [Example("aabbab>", "aaaa")])
    batch = encoder.encode([episode])
    assert rows(batch.support) == [[[[3, 4, 2, 4]]], [[[X, X, 4, 4]]]]
    assert rows(batch.query) == [[[[2, 3, 3, 3]]], [[[3, 3, 3, 3]]]]
    with caplog.at_level(logging.WARNING):
        encoder.encode([episode])
    assert [record.getMessage() for record in caplog.records] == [
        "a prompt is cut to the context of 4 tokens; others may be, too"
    ]


@pytest.mark.parametrize("example", [Example("a>", "babab"), Example("", "b"), Example("a>", "")])
def test_what_cannot_be_asked(tokenizer, example):
    with pytest.raises(UserError, match=r"context: found a prompt of \d tokens .* expected both, the response of at"):
        EpisodeEncoder(tokenizer, 4).encode([Episode([example], [example])])


def test_rows_of_a_classifier(tokenizer):
    start, _, extract = tokenizer.with_task_tokens().task_ids
    episode = Episode([Example("ab>", "b", 1), Example("a>", "a", 0)], [Example("abab>", "b", 1)])
    batch = EpisodeEncoder(tokenizer.with_task_tokens(), 6, classifies=True).encode([episode, episode])
    tokens, lengths, index = batch.support.inputs
    assert tokens[0].tolist() == [[start, 3, 4, 2, extract], [start, 3, 2, extract, 0]]
    assert torch.equal(tokens[0], tokens[1])
    assert (lengths.tolist(), index.tolist()) == ([[5, 4]] * 2, [[[0], [1]]] * 2)
    assert (batch.support.targets.tolist(), batch.query.targets.tolist()) == ([[1, 0]] * 2, [[1]] * 2)
    assert batch.query.inputs[0][0].tolist() == [[start, 3, 4, 3, 4, extract]], "cut to the context"


def test_an_example_without_a_class(tokenizer):
    with pytest.raises(UserError, match="found classification and an example without a class"):
        EpisodeEncoder(tokenizer.with_task_tokens(), 16, classifies=True).encode([ONE])
