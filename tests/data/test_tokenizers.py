import json
import subprocess
import sys

import pytest

from gpt_modules.data.tokenizers import Tokenizer
from gpt_modules.errors import UserError

TEXTS = ["Hello world", "  two  spaces\n\nand lines\t", "naïve café 你好 🙂", "", "a<|endoftext|>b"]


@pytest.fixture(scope="module")
def gpt2():
    return Tokenizer.gpt2()


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello world", [15496, 995]),
        ("The quick brown fox jumps over the lazy dog", [464, 2068, 7586, 21831, 18045, 625, 262, 16931, 3290]),
        (" I'm 2 hot 4 you 你好", [314, 1101, 362, 3024, 604, 345, 220, 19526, 254, 25001, 121]),
    ],
)
def test_gpt2_ids_are_openais(gpt2, text, ids):
    assert gpt2.encode(text) == ids
    assert gpt2.decode(ids) == text


def test_gpt2_sizes(gpt2):
    assert (gpt2.vocab_size, gpt2.eos_id) == (50257, 50256)


def test_batch_equals_one_by_one(gpt2):
    assert gpt2.encode_batch(TEXTS) == [gpt2.encode(text) for text in TEXTS]


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_survives_the_round_trip(gpt2, text):
    assert gpt2.decode(gpt2.encode(text)) == text


def test_end_token_in_a_text_is_only_text(gpt2):
    assert gpt2.eos_id not in gpt2.encode("a<|endoftext|>b")
    assert gpt2.decode([15496, 50256], skip_special=False) == "Hello<|endoftext|>"
    assert gpt2.decode([15496, 50256]) == "Hello"


def test_saved_tokenizer_is_the_same_one(gpt2, tmp_path):
    file = gpt2.save(tmp_path)
    for name in (tmp_path, file):
        opened = Tokenizer.load(name)
        assert opened.fingerprint == gpt2.fingerprint
        assert opened.encode_batch(TEXTS) == gpt2.encode_batch(TEXTS)


def test_transformers_opens_the_folder(gpt2, tmp_path):
    from transformers import AutoTokenizer

    gpt2.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.eos_token_id == gpt2.eos_id
    assert [theirs(text)["input_ids"] for text in TEXTS[:-1]] == gpt2.encode_batch(TEXTS[:-1])


def test_training_finds_the_frequent_pair_and_ends_with_eos():
    tokenizer = Tokenizer.train(["ab ab ab ab", "ab"], vocab_size=258)
    assert tokenizer.vocab_size == 258
    assert tokenizer.eos_id == 257
    assert len(tokenizer.encode("ab")) == 1
    assert len(tokenizer.encode("ba")) == 2
    assert tokenizer.decode(tokenizer.encode("何でも")) == "何でも"


def test_training_twice_gives_the_same():
    texts = ["the cat sat on the mat", "a cat is a cat", "that hat"] * 5
    assert Tokenizer.train(texts, 300).fingerprint == Tokenizer.train(iter(texts), 300).fingerprint


def test_too_few_ids_are_refused():
    with pytest.raises(UserError, match="vocab_size: found 256, expected at least 257"):
        Tokenizer.train(["a"], 256)


def test_mistakes_are_one_line(tmp_path):
    (tmp_path / "broken.json").write_text("{")
    headless = tmp_path / "headless"
    headless.mkdir()
    body = json.loads(Tokenizer.train(["ab"], 257).to_json())
    body["added_tokens"] = []
    (headless / "tokenizer.json").write_text(json.dumps(body))
    cases = {
        "./nowhere": "no such file",
        tmp_path: "no tokenizer.json",
        tmp_path / "broken.json": "no readable",
        headless: "no <",
    }
    for name, found in cases.items():
        with pytest.raises(UserError, match=f"^[^\n]*found {found}[^\n]*$"):
            Tokenizer.load(name)


def test_import_is_cheap():
    code = "import sys, gpt_modules.data.tokenizers; assert not {'torch', 'lightning', 'datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
