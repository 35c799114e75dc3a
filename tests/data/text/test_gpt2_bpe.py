import pytest

from gpt_modules.data.text.gpt2_bpe import gpt2_bpe


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello world", [15496, 995]),
        ("The quick brown fox jumps over the lazy dog", [464, 2068, 7586, 21831, 18045, 625, 262, 16931, 3290]),
        (" I'm 2 hot 4 you 你好", [314, 1101, 362, 3024, 604, 345, 220, 19526, 254, 25001, 121]),
    ],
)
def test_gpt2_ids_are_openais(text, ids):
    backend = gpt2_bpe()
    assert backend.encode(text).ids == ids
    assert backend.decode(ids) == text


def test_gpt2_sizes():
    assert (gpt2_bpe().get_vocab_size(), gpt2_bpe().token_to_id("<|endoftext|>")) == (50257, 50256)
