import errno
import multiprocessing
from pathlib import Path

import pytest

from gpt_modules.data.corpus import documents as pieces
from gpt_modules.data.corpus import shard_writer
from gpt_modules.data.corpus.shard_writer import open_or_write_shards, write_shards
from gpt_modules.data.corpus.shards import open_shards, read_manifest
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError

DOCUMENTS = [["Hello world"], ["你好"], ["a<|endoftext|>b"]]
MANY = [[f"Document {i}, line one.\nAnd two: {i * i}.\n" * (i % 5 + 1)] for i in range(24)]


class Killed(BaseException):
    """What nothing in the code expects."""


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["Hello world, a line of a document."], 270)


@pytest.fixture
def small(monkeypatch):
    """Many pieces, many chunks."""
    monkeypatch.setattr(pieces, "PIECE", 40)
    monkeypatch.setattr(pieces, "CHUNK", 150)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_pieces_and_chunks_change_nothing(tmp_path, tokenizer, small):
    write_shards(tmp_path, MANY, tokenizer)
    expected = [tokenizer.eos_id]
    for (document,) in MANY:
        expected += [*tokenizer.encode(document), tokenizer.eos_id]
    assert open_shards(tmp_path, tokenizer)[0].tolist() == expected


@pytest.mark.parametrize(("shard_tokens", "workers"), [(61, 1), (300, 1), (300, 2)])
def test_a_run_cut_off_anywhere_ends_with_the_same_bytes(
    tmp_path, tokenizer, small, monkeypatch, shard_tokens, workers
):
    write_shards(tmp_path / "whole", MANY, tokenizer, shard_tokens=shard_tokens)
    rename, calls = Path.replace, 0

    def replace(path, target):
        """Dies before or after the rename of every fourth file."""
        nonlocal calls
        calls += 1
        if calls % 8 == 3:
            raise Killed
        rename(path, target)
        if calls % 8 == 7:
            raise Killed

    monkeypatch.setattr(Path, "replace", replace)
    for _ in range(400):
        try:
            write_shards(tmp_path / "cut", MANY, tokenizer, shard_tokens=shard_tokens, workers=workers)
            break
        except Killed:
            workers = 1
    assert calls > 8
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_a_second_run_reads_no_document(tmp_path, tokenizer):
    first = write_shards(tmp_path, DOCUMENTS, tokenizer)
    assert write_shards(tmp_path, ([1 / 0] for _ in range(1)), tokenizer) == first
    assert open_or_write_shards(tmp_path, ([1 / 0] for _ in range(1)), tokenizer) is not None


def test_a_damaged_shard_and_what_follows_are_written_anew(tmp_path, tokenizer, small, caplog):
    write_shards(tmp_path, MANY, tokenizer, shard_tokens=200)
    expected = content(tmp_path)
    file = sorted(tmp_path.glob("*.bin"))[2]
    file.write_bytes(b"x" + file.read_bytes()[1:])
    write_shards(tmp_path, MANY, tokenizer, shard_tokens=200)
    assert content(tmp_path) == expected
    assert f"{file.name}: found altered tokens" in caplog.text


def test_a_damaged_cache_is_mended(tmp_path, tokenizer, caplog):
    expected = open_or_write_shards(tmp_path, DOCUMENTS, tokenizer).tolist()
    (file,) = tmp_path.glob("*.bin")
    file.write_bytes(file.read_bytes()[:-2])
    assert open_or_write_shards(tmp_path, DOCUMENTS, tokenizer).tolist() == expected
    assert "writing it anew" in caplog.text


def test_a_folder_of_something_else_is_refused(tmp_path, tokenizer):
    settings = {"source": "a", "shard_tokens": 6}
    write_shards(tmp_path, DOCUMENTS, tokenizer, shard_tokens=6, made_from=settings)
    before = content(tmp_path)
    with pytest.raises(UserError, match=r"manifest.json: source: found 'a', expected this run's 'b'"):
        write_shards(tmp_path, DOCUMENTS, tokenizer, shard_tokens=6, made_from=settings | {"source": "b"})
    with pytest.raises(UserError, match=r"manifest.json: tokenizer: found another"):
        write_shards(tmp_path, DOCUMENTS, Tokenizer.train(["ab"], 257), shard_tokens=6, made_from=settings)
    assert content(tmp_path) == before


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, tokenizer, small, monkeypatch):
    write_shards(tmp_path / "whole", MANY, tokenizer, shard_tokens=200)
    flush, calls = shard_writer._flush, 0

    def full(file):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(file)

    monkeypatch.setattr(shard_writer, "_flush", full)
    with pytest.raises(
        UserError,
        match=r"\(No space left on device, .* MB free\), expected room .*; what is whole stays, and the same command",
    ) as caught:
        write_shards(tmp_path / "cut", MANY, tokenizer, shard_tokens=200)
    assert "\n" not in str(caught.value)
    assert len(read_manifest(tmp_path / "cut").shards) == 3
    assert not list((tmp_path / "cut").glob(".*"))
    write_shards(tmp_path / "cut", MANY, tokenizer, shard_tokens=200)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_nothing_to_write_and_nowhere_to_write(tmp_path, tokenizer):
    with pytest.raises(UserError, match="found no document"):
        write_shards(tmp_path / "a", [], tokenizer)
    assert not list((tmp_path / "a").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/b: could not be written \(Not a directory, .*free\), expected room"):
        write_shards(tmp_path / "file" / "b", DOCUMENTS, tokenizer)


def _write(folder):
    open_or_write_shards(Path(folder), DOCUMENTS * 200, Tokenizer.gpt2())


def test_two_processes_may_write_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(str(tmp_path),)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert open_shards(tmp_path, Tokenizer.gpt2())[1].documents == 600
    assert len(list(tmp_path.iterdir())) == 2
