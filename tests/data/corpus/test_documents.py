import json
import random

import pytest

from gpt_modules.data.corpus import documents as pieces
from gpt_modules.data.corpus.documents import cut_document, cuts_safely, document_chunks, file_blocks, source_documents
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError

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


def test_a_text_file_is_read_block_by_block(tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "BLOCK", 3)
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffaé你\r\nb\rc🙂\n".encode())
    assert "".join(file_blocks(path)) == path.read_text(encoding="utf-8-sig") == "aé你\nb\nc🙂\n"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"ab\nc\xffd", r":2: row: found bytes that are not UTF-8"),
        (b"a\n\nb\xc3", r":3: row: found the file cut off inside a character"),
        (b" \n\n", "found only blank lines"),
    ],
)
def test_a_bad_text_file_is_named(tmp_path, data, message):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(UserError, match=f"a.txt{message}" if message.startswith(":") else message):
        list(file_blocks(tmp_path / "a.txt"))


def test_documents_of_files_of_any_kind_come_in_order(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in ("one", "two")))
    (tmp_path / "b.txt").write_text("three")
    options = {"cache_dir": tmp_path / "cache", "text_field": "body"}
    for source in (str(tmp_path), [str(tmp_path / "a.jsonl"), str(tmp_path / "*.txt")]):
        found = ["".join(document) for document in source_documents(source, "train", **options)]
        assert found == ["one", "two", "three"]
