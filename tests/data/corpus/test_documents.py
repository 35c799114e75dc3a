import json
import random

import pytest

from gpt_modules.data.corpus import documents as pieces
from gpt_modules.data.corpus.documents import (
    beginning_or_end,
    cut_document,
    cuts_safely,
    document_chunks,
    source_documents,
)
from gpt_modules.data.text.tokenizers import Tokenizer

TEXT = "One line.\n\nAnother  line \n\tand one \r\nmore.\nA very long line without any break, " * 40


@pytest.mark.parametrize("size", [1, 7, 1000, 10**6])
def test_pieces_do_not_depend_on_blocks(monkeypatch, size):
    monkeypatch.setattr(pieces, "PIECE", 50)
    blocks = [TEXT[i : i + size] for i in range(0, len(TEXT), size)]
    found = list(cut_document(blocks))
    assert found == list(cut_document([TEXT]))
    assert "".join(text for text, _ in found) == TEXT
    assert [last for _, last in found] == [False] * (len(found) - 1) + [True]
    assert len(found) > 20
    assert all(len(text) >= 50 for text, _ in found[:-1])


def test_pieces_have_the_ids_of_the_whole(monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", 20)
    tokenizers = [Tokenizer.gpt2(), Tokenizer.train([TEXT], 300), Tokenizer.train([TEXT], 60, "characters")]
    rng = random.Random(0)
    texts = ["".join(rng.choices(["word", " ", "  ", "\n", "\r", "\t", ".", "'s", "7", "é"], k=200)) for _ in range(50)]
    for tokenizer in tokenizers:
        assert cuts_safely(tokenizer)
        for text in [TEXT, *texts]:
            whole = [token for piece, _ in cut_document([text]) for token in tokenizer.encode(piece)]
            assert whole == tokenizer.encode(text)


def test_a_tokenizer_that_reads_over_line_breaks_gets_whole_documents(monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", 50)
    tokenizer = Tokenizer.train([TEXT], 300, "gpt1")
    assert not cuts_safely(tokenizer)
    (chunk,) = document_chunks([[TEXT[:999], TEXT[999:]]], tokenizer)
    assert chunk.texts == [TEXT]
    assert chunk.ends == [True]


def test_chunks_count_what_ends_in_them(monkeypatch):
    monkeypatch.setattr(pieces, "CHUNK", 6)
    chunks = list(document_chunks([["abcd"], ["é"], ["z"], ["e", "f"]], Tokenizer.gpt2()))
    assert [chunk.texts for chunk in chunks] == [["abcd", "é", "z"], ["ef"]]
    assert [(chunk.documents, chunk.text_bytes) for chunk in chunks] == [(3, 7), (1, 2)]


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize(
    ("held_out", "end"), [(1, " f"), (4, " e f"), (5, "\nd e f"), (9, "c\nd e f"), (13, " b c\nd e f")]
)
def test_the_end_of_some_documents_is_whole_words(size, held_out, end):
    texts = ["aaaa b ", "c\nd e f"]
    lengths = [len(text) for text in texts]

    def side(split):
        blocks = [[text[i : i + size] for i in range(0, len(text), size)] for text in texts]
        return ["".join(document) for document in beginning_or_end(blocks, lengths, held_out, split)]

    train, validation = side("train"), side("validation")
    assert "".join(train + validation) == "".join(texts)
    if size == 100:
        assert "".join(validation).endswith(end)


def test_documents_of_files_of_any_kind_come_in_order(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in ("one", "two")))
    (tmp_path / "b.txt").write_text("three")
    options = {"cache_dir": tmp_path / "cache", "text_field": "body"}
    for source in (str(tmp_path), [str(tmp_path / "a.jsonl"), str(tmp_path / "*.txt")]):
        found = ["".join(document) for document in source_documents(source, "train", **options)]
        assert found == ["one", "two", "three"]
