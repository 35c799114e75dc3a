"""Pieces of an answer, against the text of all its tokens at once and stops looked for a character at a time."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from gpt_modules.data.text.streaming import AnswerText
from gpt_modules.data.text.tokenizers import Tokenizer

TEXT = "Ein café, 日本語 and \U0001f600\U0001f469\u200d\U0001f680 emoji; naïve — ok\ufffd.\n\n  two  spaces\t!" * 2
CORPUS = [TEXT, "the film is good", "a story  is bad\n"] * 5


def metaspace():
    """SentencePiece's kind with bytes for what it lacks, as Llama 2 has it."""
    names = ["<s>", "</s>", "▁", "▁the", "film", "▁is", ".", *[f"<0x{byte:02X}>" for byte in range(256)]]
    backend = Backend(models.BPE({name: i for i, name in enumerate(names)}, [], byte_fallback=True, fuse_unk=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<s>", "</s>"])
    return Tokenizer(backend, "</s>")


TOKENIZERS = {
    "gpt2": Tokenizer.gpt2(),
    "own": Tokenizer.train(CORPUS, 300),
    "words": Tokenizer.train(CORPUS, 300, "gpt1"),
    "characters": Tokenizer.train(CORPUS, 60, "characters"),
    "metaspace": metaspace(),
}


def pieces(tokenizer, ids, stops=()):
    answer = AnswerText(tokenizer, stops)
    return [*(answer.add(token) for token in ids), answer.close()], answer


def test_what_ends_an_answer_and_is_text_is_a_part_of_it_but_for_the_end_token():
    tokenizer = TOKENIZERS["metaspace"]
    found, _ = pieces(tokenizer, [*tokenizer.within.encode("film."), tokenizer.eos_id])
    assert "".join(found) == "film."


@pytest.mark.parametrize("name", TOKENIZERS)
def test_pieces_joined_are_the_text(name):
    tokenizer, draw = TOKENIZERS[name], random.Random(0)
    of_texts = [tokenizer.within.encode(TEXT), tokenizer.within.encode(" the film is.")]
    of_chance = [[draw.randrange(tokenizer.vocab_size) for _ in range(draw.randrange(40))] for _ in range(300)]
    # A run of SentencePiece's byte tokens that is no UTF-8 is all replaced, in hindsight: known when the text is whole.
    for ids in of_texts + (of_chance if name != "metaspace" else []):
        found, _ = pieces(tokenizer, ids)
        assert "".join(found) == tokenizer.within.decode(ids)


def test_no_piece_has_a_part_of_a_character():
    tokenizer = TOKENIZERS["gpt2"]
    ids = tokenizer.encode("日本語\U0001f600")
    found, _ = pieces(tokenizer, ids)
    assert [piece for piece in found if piece] == ["日", "本", "語", "\U0001f600"]
    assert len(ids) > 4


def test_a_character_that_never_ends_is_given_at_the_end():
    tokenizer = TOKENIZERS["gpt2"]
    found, _ = pieces(tokenizer, [*tokenizer.encode("a"), tokenizer.encode("日")[0]])
    assert found == ["a", "", "\ufffd"]


def one_by_one(text, stops):
    """The text before the stop that is complete first; of two that are at once, the longer one."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=4), st.integers(0, 3))
def test_stops_are_as_of_a_character_at_a_time(text, stops, seed):
    """However tokens cut it: no piece ever has to be taken back."""
    tokenizer, draw, ids = TOKENIZERS["gpt2"], random.Random(seed), []
    at = 0
    while at < len(text):
        size = draw.randrange(1, 4)
        ids += tokenizer.encode(text[at : at + size])
        at += size
    found, answer = pieces(tokenizer, ids, stops)
    assert "".join(found) == one_by_one(text, stops)
    assert answer.stopped == any(stop in text for stop in stops)


def test_what_may_become_a_stop_is_held_back():
    tokenizer = TOKENIZERS["characters"]
    found, _ = pieces(tokenizer, tokenizer.encode("the fo"), ["foe"])
    assert found == ["t", "h", "e", " ", "", "", "fo"]


def test_special_tokens_have_no_text():
    tokenizer = TOKENIZERS["gpt2"]
    found, _ = pieces(tokenizer, [*tokenizer.encode("a"), tokenizer.eos_id])
    assert "".join(found) == "a"


def test_a_turn_begins_with_its_first_word():
    tokenizer = TOKENIZERS["gpt2"]
    answer = AnswerText(tokenizer, ["\n"], turn=True)
    assert [answer.add(token) for token in tokenizer.encode(" \n  film noir \n")] == [
        "",
        "",
        "",
        "film",
        " no",
        "ir",
        " ",
        "",
    ]
    assert answer.stopped
