import random
import unicodedata

import numpy as np
import pytest
import tokenizers
from tokenizers import normalizers, pre_tokenizers

from gpt_modules.data.corpus import encoding
from gpt_modules.data.corpus.documents import Chunk
from gpt_modules.data.corpus.encoding import ChunkEncoder, WordEncoder, encode_chunks, splits_like_gpt2
from gpt_modules.data.text.tokenizers import Tokenizer


@pytest.fixture(scope="module")
def words():
    return WordEncoder(Tokenizer.gpt2())


def ids(data):
    return np.frombuffer(data, dtype="<u2").tolist()


def test_every_kind_of_character_gets_the_librarys_ids(words):
    rng, tokenizer = random.Random(0), Tokenizer.gpt2()
    spaces = [chr(i) for i in range(0x3001) if chr(i).isspace() or unicodedata.category(chr(i)).startswith(("Z", "C"))]
    plain = list("  \n\n\t''''stremdvlaeiou 012 .,!?-SD") * 30
    others = [chr(i) for i in (*range(0x530), *range(0x2000, 0x2100), *range(0x3000, 0x3100), *range(0x1F600, 0x1F700))]
    for _ in range(400):
        text = "".join(rng.choices(plain + spaces + others, k=rng.randint(1, 120)))
        assert ids(words.encode(text)) == tokenizer.encode(text), repr(text)


def test_plain_text_takes_the_short_way_to_the_same_ids(words):
    tokenizer = Tokenizer.gpt2()
    characters = [chr(i) for i in range(128)] + list(" '\n") * 20
    rng = random.Random(1)
    for _ in range(300):
        text = "".join(rng.choices(characters, k=rng.randint(0, 80)))
        assert ids(words.encode(text)) == tokenizer.encode(text), repr(text)


def test_the_memo_forgets_and_is_right_still(monkeypatch):
    monkeypatch.setattr(encoding, "WORDS", 5)
    monkeypatch.setattr(encoding, "LONGEST", 4)
    encoder, tokenizer = WordEncoder(Tokenizer.gpt2()), Tokenizer.gpt2()
    text = "many words of every length, extraordinarily many " * 3
    assert ids(encoder.encode(text)) == tokenizer.encode(text)
    assert len(encoder._memo) <= 5


def test_other_tokenizers_are_left_to_the_library():
    own = Tokenizer.train(["some text"], 300)
    assert splits_like_gpt2(Tokenizer.gpt2())
    assert splits_like_gpt2(own)
    for kind in ("gpt1", "characters"):
        assert not splits_like_gpt2(Tokenizer.train(["some text"], 300, kind))
    for change in (
        {"normalizer": normalizers.Lowercase()},
        {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)},
        {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)},
        {"pre_tokenizer": pre_tokenizers.Whitespace()},
    ):
        backend = tokenizers.Tokenizer.from_str(own.to_json())
        for name, value in change.items():
            setattr(backend, name, value)
        assert not splits_like_gpt2(Tokenizer(backend))
    backend = tokenizers.Tokenizer.from_str(own.to_json())
    backend.add_tokens(["text"])
    assert not splits_like_gpt2(Tokenizer(backend))


@pytest.mark.parametrize("kind", ["gpt2", "gpt1", "characters"])
@pytest.mark.parametrize("worth_it", [0, 10**6])
def test_a_chunk_has_end_tokens_where_documents_end(kind, worth_it, monkeypatch):
    monkeypatch.setattr(encoding, "WORTH_IT", worth_it)
    tokenizer = Tokenizer.train(["One text.\nAnother text!"], 300, kind)
    encoded = ChunkEncoder(tokenizer)(Chunk(["One text", ".\nAno", "Another"], [False, True, True]))
    one, rest, other = (tokenizer.encode(text) for text in ("One text", ".\nAno", "Another"))
    assert encoded.tokens.tolist() == [*one, *rest, tokenizer.eos_id, *other, tokenizer.eos_id]
    assert (encoded.documents, encoded.text_bytes) == (2, 20)


def test_processes_give_the_same_in_order():
    tokenizer = Tokenizer.train(["Some text"], 300)
    chunks = [Chunk([f"text {i}"], [True]) for i in range(9)]
    alone, together = (list(encode_chunks(chunks, tokenizer, workers)) for workers in (1, 2))
    assert [encoded.tokens.tolist() for encoded in alone] == [encoded.tokens.tolist() for encoded in together]
