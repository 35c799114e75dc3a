import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from gpt_modules.data import shards
from gpt_modules.data.shards import encode_documents, open_or_write_shard, open_shard, write_shard
from gpt_modules.data.tokenizers import Tokenizer
from gpt_modules.errors import UserError

DOCUMENTS = ["Hello world", "你好", "a<|endoftext|>b"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.gpt2()


def test_documents_between_end_tokens(tmp_path, tokenizer):
    shard = write_shard(tmp_path, DOCUMENTS, tokenizer)
    expected = [50256]
    for document in DOCUMENTS:
        expected += [*tokenizer.encode(document), 50256]
    assert shard.tokens.tolist() == expected
    assert shard.tokens.dtype == np.uint16
    assert (shard.manifest.documents, shard.manifest.count) == (3, len(expected))
    assert shard.manifest.text_bytes == sum(len(document.encode()) for document in DOCUMENTS)
    assert not list(tmp_path.glob(".*"))


def test_chunks_and_pieces_change_nothing(tmp_path, tokenizer, monkeypatch):
    text = "One line.\n\nAnother  line \n\tand one \r\nmore.\nA very long line without any break " * 40
    whole = [tokenizer.encode(document) for document in (text, "b", text[::-1])]
    monkeypatch.setattr(shards, "PIECE", 50)
    assert len(shards._pieces(text)) > 20
    assert "".join(shards._pieces(text)) == text
    assert encode_documents([text, "b", text[::-1]], tokenizer) == whole
    monkeypatch.setattr(shards, "CHUNK", 10)
    shard = write_shard(tmp_path, [text, "b"], tokenizer)
    assert shard.tokens.tolist() == [50256, *whole[0], 50256, *whole[1], 50256]


def test_second_opening_does_not_read_the_documents(tmp_path, tokenizer):
    written = write_shard(tmp_path, DOCUMENTS, tokenizer)
    opened = open_or_write_shard(tmp_path, (1 / 0 for _ in range(1)), tokenizer)
    assert opened.tokens.tolist() == written.tokens.tolist()


def damage(path, kind):
    data = bytearray(path.read_bytes())
    if kind == "bit":
        data[5] ^= 1
    path.write_bytes(data[:-2] if kind == "short" else data)
    if kind == "gone":
        path.unlink()


@pytest.mark.parametrize(("kind", "found"), [("bit", "altered tokens"), ("short", r"\d+ bytes"), ("gone", "0 bytes")])
def test_damage_is_found_and_mended(tmp_path, tokenizer, caplog, kind, found):
    shard = write_shard(tmp_path, DOCUMENTS, tokenizer)
    expected, file = shard.tokens.tolist(), tmp_path / shard.manifest.file
    del shard
    damage(file, kind)
    with pytest.raises(UserError, match=f"{file.name}: found {found}"):
        open_shard(tmp_path, tokenizer)
    assert open_or_write_shard(tmp_path, DOCUMENTS, tokenizer).tokens.tolist() == expected
    assert "writing it anew" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": "x"}, "tokenizer: found another tokenizer's tokens"),
        ({"format_version": 99}, "format_version: found 99, expected 1"),
        ({"file": "../../etc/passwd"}, "expected a file name"),
        ({"extra": 1}, "found no readable manifest"),
    ],
)
def test_manifest_is_checked(tmp_path, tokenizer, change, message):
    write_shard(tmp_path, DOCUMENTS, tokenizer)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    with pytest.raises(UserError, match=message):
        open_shard(tmp_path, tokenizer)


def test_nothing_to_write_and_nowhere_to_write(tmp_path, tokenizer):
    with pytest.raises(UserError, match="found no document"):
        write_shard(tmp_path / "a", [], tokenizer)
    assert not list((tmp_path / "a").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="found no way to write token shards"):
        write_shard(tmp_path / "file" / "b", DOCUMENTS, tokenizer)


def _write(folder):
    write_shard(Path(folder), DOCUMENTS * 200, Tokenizer.gpt2())


def test_two_processes_may_write_at_once(tmp_path, tokenizer):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(str(tmp_path),)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert open_shard(tmp_path, tokenizer).manifest.documents == 600
    assert len(list(tmp_path.iterdir())) == 2
