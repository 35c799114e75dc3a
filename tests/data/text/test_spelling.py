"""Tokens one by one, against the text of many."""

import pytest
from data.text.test_streaming import CORPUS, TEXT, TOKENIZERS

from gpt_modules.data.text.spelling import Spelling


@pytest.mark.parametrize("name", ["gpt2", "own", "metaspace"])
def test_bytes_joined_are_those_of_the_text(name):
    tokenizer = TOKENIZERS[name].within
    spelling = Spelling(tokenizer)
    for text in (TEXT, *CORPUS[:3]):
        assert b"".join(map(spelling.bytes_of, tokenizer.encode(text))) == text.encode()


def test_names():
    tokenizer = TOKENIZERS["gpt2"]
    spelling = Spelling(tokenizer)
    assert spelling.name_of(tokenizer.encode(" film")[0]) == " film"
    assert spelling.name_of(tokenizer.eos_id) == "<|endoftext|>"
    assert [spelling.name_of(token) for token in tokenizer.encode("日")] == ["bytes:\\xe6\\x97", "bytes:\\xa5"]
    assert spelling.bytes_of(10**6) == b""
    words = TOKENIZERS["words"]
    assert "".join(map(Spelling(words).name_of, words.encode("the film is"))) == "the film is "


def test_control_tokens_of_a_text_are_in_it():
    tokenizer = TOKENIZERS["gpt2"]
    spelling, ids = Spelling(tokenizer), tokenizer.encode("日 film")
    assert spelling.text_of([*ids, tokenizer.eos_id, *ids]) == "日 film<|endoftext|>日 film"
    assert [spelling.has_control(of) for of in (ids, [*ids, tokenizer.eos_id])] == [False, True]


def test_no_two_tokens_of_bytes_have_one_name():
    tokenizer = TOKENIZERS["gpt2"]
    spelling = Spelling(tokenizer)
    assert len({spelling.name_of(token) for token in range(tokenizer.vocab_size)}) == tokenizer.vocab_size
