"""Perplexity of texts against the harness's windows, transformers' log-probabilities and literals worked by hand."""

import math

import pytest
import torch
from conftest import shaken
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2LMHeadModel

from gpt_modules.backbone import GPT, load_pretrained
from gpt_modules.errors import UserError
from gpt_modules.evaluation.tasks import perplexity
from gpt_modules.evaluation.tasks.perplexity import CorpusScore, corpus_nats, document_nats, windows

TEXT = "the film is good and bad. a story is dull!\n\nits cast is 12 and Fine: ünïcode, " * 3


@pytest.fixture
def gpt(micro) -> GPT:
    return load_pretrained(str(micro.gpt), kind="gpt")


@given(st.integers(0, 40), st.integers(1, 9), st.data())
def test_windows_are_those_of_the_harness(length, n_positions, data):
    harness = pytest.importorskip("lm_eval.utils")
    stride = data.draw(st.integers(1, n_positions))
    tokens = list(range(length))
    theirs = harness.get_rolling_token_windows(tokens, -1, n_positions, n_positions - stride + 1)
    assert list(windows(tokens, -1, n_positions, stride)) == [harness.make_disjoint_window(pair) for pair in theirs]


@pytest.mark.parametrize("stride", [None, 32, 20, 7, 1])
def test_as_transformers_sees_each_window(micro, gpt, stride):
    """Each token from the 32 before it at most, so many of them as the stride leaves; the first from the end token."""
    oracle = GPT2LMHeadModel.from_pretrained(micro.gpt).eval().double()
    text = [micro.tokenizer.eos_id, *micro.tokenizer.encode(TEXT)]
    assert len(text) > 100
    nats, done = 0.0, 1
    while done < len(text):
        end = min(len(text), done + (32 if done == 1 or stride is None else stride))
        begin = max(0, end - 33)
        seen = torch.tensor([text[begin:end]])
        with torch.no_grad():
            logprobs = oracle(seen[:, :-1]).logits[0].log_softmax(-1).gather(1, seen[0, 1:, None])
        nats -= float(logprobs[done - begin - 1 :].sum())
        done = end
    score = corpus_nats(gpt.double(), micro.tokenizer, TEXT, stride)
    assert score.nats == pytest.approx(nats, rel=1e-9)
    assert score.tokens == len(text) - 1


def test_units_are_those_of_the_text_before_the_detokenizer(micro, gpt):
    text = " ünder @-@ way , \n"
    score = corpus_nats(gpt, micro.tokenizer, text, detokenizer=lambda given: "under-way,\n")
    assert (score.words, score.characters, score.bytes) == (5, 18, 19), "the line's end is a word and a character"
    assert score.tokens == len(micro.tokenizer.encode("under-way,\n"))
    assert score.nats == corpus_nats(gpt, micro.tokenizer, "under-way,\n").nats


def test_words_are_counted_as_for_the_penn_treebank(micro, gpt):
    """A line's end is a word there, `<eos>`: two lines of 6 and 4 words are 12. A text without one has none."""
    lines = " consumers may want to move their \n telephones a little closer \n"
    score = corpus_nats(gpt, micro.tokenizer, lines)
    assert (score.words, score.characters, score.bytes) == (12, 64, 64)
    assert score.word_perplexity == pytest.approx(math.exp(score.nats / 12), rel=1e-12)
    assert corpus_nats(gpt, micro.tokenizer, "closer to the tv").words == 4
    assert corpus_nats(gpt, micro.tokenizer, "é\r\n\n").words == 3


def test_a_model_that_knows_nothing_needs_the_logarithm_of_its_vocabulary(micro):
    """All logits equal: ln V nats a token, whatever the windows."""
    gpt = GPT(micro.config())
    torch.nn.init.zeros_(gpt.decoder.wte.weight)
    score = corpus_nats(gpt, micro.tokenizer, TEXT, stride=5)
    assert score.token_perplexity == pytest.approx(micro.vocab_size, rel=1e-4)
    assert score.nats == pytest.approx(score.tokens * math.log(micro.vocab_size), rel=1e-5)


def test_units_by_hand():
    score = CorpusScore(nats=8 * math.log(2), tokens=8, words=2, characters=4, bytes=16)
    found = (score.token_perplexity, score.word_perplexity, score.byte_perplexity)
    assert found == pytest.approx((2.0, 16.0, math.sqrt(2)))
    assert (score.bits_per_character, score.bits_per_byte) == pytest.approx((2.0, 0.5))
    both = score + CorpusScore(8 * math.log(2), 0, 2, 4, 0)
    assert both == CorpusScore(16 * math.log(2), 8, 4, 8, 16)
    assert CorpusScore(1e4, 1, 1, 1, 1).word_perplexity == math.inf
    assert math.isnan(CorpusScore(1.0, 1, 0, 1, 1).word_perplexity)


def test_documents_are_read_apart_and_together_alike(micro, monkeypatch):
    gpt = shaken(GPT(micro.config(n_positions=16)), 4).double()
    documents = [[1, 2, 3] * 20, [], [4], list(range(50))]
    alone = [document_nats(gpt, [tokens], 0, stride=6)[0] for tokens in documents]
    monkeypatch.setattr(perplexity, "_WINDOWS", 3)
    assert document_nats(gpt, documents, 0, stride=6) == pytest.approx(alone, rel=1e-9)
    assert alone[1] == 0.0


@pytest.mark.parametrize(
    ("text", "stride", "message"),
    [
        ("", None, "text: found no token in it, expected at least one to predict"),
        ("a", 0, "stride: found 0, expected 1 to n_positions = 32"),
        ("a", 33, "stride: found 33, expected 1 to n_positions = 32"),
    ],
)
def test_what_has_no_perplexity(micro, gpt, text, stride, message):
    with pytest.raises(UserError, match=message):
        corpus_nats(gpt, micro.tokenizer, text, stride)
