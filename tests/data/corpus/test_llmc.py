import numpy as np
import pytest

from gpt_modules.data.corpus.llmc import open_llmc
from gpt_modules.data.corpus.streams import open_tokens
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError


def write(path, ids, magic=20240520, version=1, dtype="<u2", count=None):
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, len(ids) if count is None else count
    path.write_bytes(header.tobytes() + np.array(ids, dtype=dtype).tobytes())
    return path


def test_both_kinds_are_read(tmp_path):
    assert open_llmc(write(tmp_path / "a.bin", [50256, 1, 2]), 50257).tolist() == [50256, 1, 2]
    four = write(tmp_path / "b.bin", [128000, 7], 20240801, 7, "<u4")
    assert open_llmc(four, 128256).tolist() == [128000, 7]


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        ([1], {"magic": 20240521}, "found magic 20240521 version 1, expected 20240520 version 1 or"),
        ([1], {"version": 7}, "found magic 20240520 version 7"),
        ([1, 2], {"count": 3}, "found 1028 bytes, expected 1030 for the 3 tokens"),
        ([], {}, "found 1024 bytes, expected 1024 for the 0 tokens"),
        ([5, 6, 300, 2], {}, "token 2: found id 300, expected ids below the tokenizer's 300"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, ids, options, message):
    with pytest.raises(UserError, match=f"a.bin: {message}"):
        open_llmc(write(tmp_path / "a.bin", ids, **options), 300)


def test_no_file_and_half_a_header(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"x" * 99)
    for name, size in (("a.bin", 99), ("b.bin", 0)):
        with pytest.raises(UserError, match=f"{name}: found {size} bytes, expected a token file"):
            open_llmc(tmp_path / name, 300)


def test_a_glob_is_one_stream_in_order(tmp_path):
    for number in (1, 0, 2):
        write(tmp_path / f"set_train_{number:06d}.bin", [50256, number])
    write(tmp_path / "set_val_000000.bin", [9])
    tokens = open_tokens(str(tmp_path / "*_train_*.bin"), Tokenizer.gpt2(), tmp_path / "stamps")
    assert tokens.tolist() == [50256, 0, 50256, 1, 50256, 2]
    with pytest.raises(UserError, match="found no file"):
        open_tokens(str(tmp_path / "*_test_*.bin"), Tokenizer.gpt2())
