import json
import os

import numpy as np
import pytest

from gpt_modules.data.corpus import shards
from gpt_modules.data.corpus.shard_writer import write_shards
from gpt_modules.data.corpus.shards import TokenStream, between, join_tokens, open_shards
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError

DOCUMENTS = [["Hello world"], ["你好"], ["a<|endoftext|>b"]]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["Hello world, a line of a document."], 270)


def test_documents_between_end_tokens(tmp_path, tokenizer):
    write_shards(tmp_path, DOCUMENTS, tokenizer)
    tokens, manifest = open_shards(tmp_path, tokenizer)
    expected = [tokenizer.eos_id]
    for (document,) in DOCUMENTS:
        expected += [*tokenizer.encode(document), tokenizer.eos_id]
    assert tokens.tolist() == expected
    assert tokens.dtype == np.uint16
    assert (manifest.documents, manifest.count) == (3, len(expected))
    assert manifest.text_bytes == sum(len(document.encode()) for (document,) in DOCUMENTS)
    assert len(list(tmp_path.iterdir())) == 2


def test_many_shards_are_one_stream(tmp_path, tokenizer):
    write_shards(tmp_path / "one", DOCUMENTS * 20, tokenizer)
    write_shards(tmp_path / "many", DOCUMENTS * 20, tokenizer, shard_tokens=41)
    one, many = (open_shards(tmp_path / name, tokenizer)[0] for name in ("one", "many"))
    assert isinstance(many, TokenStream)
    assert len(many.parts) == -(-len(one) // 41)
    assert many.tolist() == one.tolist()


@pytest.mark.parametrize("sizes", [[10], [1, 2, 3], [4, 0, 1, 9], []])
def test_a_stream_slices_like_one_array(sizes):
    whole = np.arange(sum(sizes))
    stream = TokenStream(np.split(whole, np.cumsum(sizes)[:-1]) if sizes else [])
    assert len(stream) == len(whole)
    for start in range(len(whole) + 2):
        for stop in range(len(whole) + 2):
            assert stream[start:stop].tolist() == whole[start:stop].tolist()
            assert stream.between(start, min(stop, len(whole))).tolist() == whole[start:stop].tolist()
    assert np.asarray(stream).tolist() == whole.tolist()


def test_parts_stay_views():
    array = np.arange(10)
    assert between(array, 2, 5).base is array
    assert join_tokens([array]) is array
    assert between(join_tokens([array, array + 10]), 8, 12).tolist() == [8, 9, 10, 11]


def damage(path, kind):
    data = bytearray(path.read_bytes())
    if kind == "bit":
        data[5] ^= 1
    path.write_bytes(data[:-2] if kind == "short" else data)
    if kind == "gone":
        path.unlink()


@pytest.mark.parametrize("stamped", [False, True])
@pytest.mark.parametrize(("kind", "found"), [("bit", "altered tokens"), ("short", r"\d+ bytes"), ("gone", "0 bytes")])
def test_damage_is_found(tmp_path, tokenizer, kind, found, stamped):
    folder, stamps = tmp_path / "shards", tmp_path / "stamps" if stamped else None
    write_shards(folder, DOCUMENTS, tokenizer, shard_tokens=6)
    open_shards(folder, tokenizer, stamps)
    file = sorted(folder.glob("*.bin"))[1]
    damage(file, kind)
    with pytest.raises(UserError, match=f"{file.name}: found {found}"):
        open_shards(folder, tokenizer, stamps)


def test_a_stamped_file_is_known_by_more_than_its_date(tmp_path, tokenizer):
    """`cp -p` of another file gives the old size and the old date of the content."""
    folder = tmp_path / "shards"
    write_shards(folder, DOCUMENTS, tokenizer)
    open_shards(folder, tokenizer, tmp_path / "stamps")
    (file,) = folder.glob("*.bin")
    before = file.stat()
    damage(file, "bit")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(UserError, match="found altered tokens"):
        open_shards(folder, tokenizer, tmp_path / "stamps")


def test_a_stamped_file_is_not_hashed_again(tmp_path, tokenizer, monkeypatch):
    write_shards(tmp_path / "shards", DOCUMENTS, tokenizer)
    open_shards(tmp_path / "shards", tokenizer, tmp_path / "stamps")
    monkeypatch.setattr(shards, "sha256_of", lambda path: 1 / 0)
    open_shards(tmp_path / "shards", tokenizer, tmp_path / "stamps")
    with pytest.raises(ZeroDivisionError):
        open_shards(tmp_path / "shards", tokenizer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": "x"}, "found altered since it was written, expected it as it was"),
        ({"vocab_size": 5}, "found altered since it was written"),
        ({"documents": 1}, "found altered since it was written"),
        ({"text_bytes": 0}, "found altered since it was written"),
        ({"tokenizer": "x", "manifest_sha256": None}, "tokenizer: found another tokenizer's tokens"),
        ({"format_version": 1}, "format_version: found 1, expected 2"),
        ({"dtype": "<f8"}, "dtype: found '<f8', expected one of <u2, <u4"),
        ({"extra": 1}, "extra: unknown key, expected one of format_version"),
        ({"complete": False}, "found altered since it was written"),
        ({"complete": False, "manifest_sha256": None}, "complete: found 1 shards of an unfinished run"),
        ({"shards": [{"file": "../../etc/passwd"}]}, r"shards\[1\]\.count: missing, expected a whole number from 1"),
        ({"count": 7}, r"count: found 7, expected the sum of the shards' counts, \d+"),
    ],
)
def test_manifest_is_checked(tmp_path, tokenizer, change, message):
    write_shards(tmp_path, DOCUMENTS, tokenizer)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    with pytest.raises(UserError, match=message):
        open_shards(tmp_path, tokenizer)


@pytest.mark.parametrize("alter", [lambda s: s[::-1], lambda s: [*s, s[0]], lambda s: s[:-1]])
def test_shards_stay_in_their_order(tmp_path, tokenizer, alter):
    write_shards(tmp_path, DOCUMENTS, tokenizer, shard_tokens=5)
    manifest = tmp_path / "manifest.json"
    fields = json.loads(manifest.read_text())
    fields["shards"] = alter(fields["shards"])
    fields["count"] = sum(shard["count"] for shard in fields["shards"])
    manifest.write_text(json.dumps(fields))
    with pytest.raises(UserError, match="found altered since it was written"):
        open_shards(tmp_path, tokenizer)


def test_the_layout_of_a_manifest_is_no_alteration(tmp_path, tokenizer):
    write_shards(tmp_path, DOCUMENTS, tokenizer)
    manifest = tmp_path / "manifest.json"
    fields = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(dict(reversed(fields.items()))))
    assert open_shards(tmp_path, tokenizer)[1].documents == len(DOCUMENTS)


def test_a_manifest_reaches_no_other_folder(tmp_path, tokenizer):
    write_shards(tmp_path / "a", DOCUMENTS, tokenizer)
    manifest = tmp_path / "a" / "manifest.json"
    fields = json.loads(manifest.read_text())
    fields["shards"][0]["file"] = "../b.bin"
    manifest.write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"shards\[1\]\.file: found '\.\./b.bin', expected the name of a file"):
        open_shards(tmp_path / "a", tokenizer)
