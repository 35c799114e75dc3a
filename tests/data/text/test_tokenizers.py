import json
import subprocess
import sys

import pytest
import tokenizers

from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError

PAIRS = [("encoder_bpe_40000.json", "vocab_40000.bpe"), ("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")]
TEXTS = ["Hello world", "  two  spaces\n\nand lines\t", "naïve café 你好 🙂", "", "a<|endoftext|>b"]


@pytest.fixture(scope="module")
def gpt2():
    return Tokenizer.gpt2()


@pytest.fixture(scope="module")
def gpt1():
    return Tokenizer.train(["Hello world, it's the end.\nA naïve café isn't bad..."] * 3, 257, "gpt1")


def write_pair(folder, tokenizer, pair=PAIRS[2], end=True):
    """The vocabulary of a tokenizer as two files, with its end token or without."""
    model = json.loads(tokenizer.to_json())["model"]
    vocabulary = model["vocab"] | ({tokenizer.eos: tokenizer.eos_id} if end else {})
    folder.mkdir(exist_ok=True)
    (folder / pair[0]).write_text(json.dumps(vocabulary))
    merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
    (folder / pair[1]).write_text("#version: 0.2\n" + merges, encoding="utf-8")
    return folder


def test_batch_equals_one_by_one(gpt2):
    assert gpt2.encode_batch(TEXTS) == [gpt2.encode(text) for text in TEXTS]


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_survives_the_round_trip(gpt2, text):
    assert gpt2.decode(gpt2.encode(text)) == text


def test_end_token_in_a_text_is_only_text(gpt2):
    assert gpt2.eos_id not in gpt2.encode("a<|endoftext|>b")
    assert gpt2.decode([15496, 50256], skip_special=False) == "Hello<|endoftext|>"
    assert gpt2.decode([15496, 50256]) == "Hello"


@pytest.mark.parametrize("kind", ["gpt1", "gpt2"])
def test_task_tokens_are_the_last_ids_and_never_text(kind, request):
    plain = request.getfixturevalue(kind)
    tokenizer = plain.with_task_tokens()
    first = plain.vocab_size
    assert tokenizer.task_ids == (first, first + 1, first + 2)
    assert tokenizer.vocab_size == first + 3
    assert tokenizer.with_task_tokens() is tokenizer
    text = "a _start_ b_delimiter_ _classify_"
    assert tokenizer.encode(text) == plain.encode(text)
    assert tokenizer.decode([first, *plain.encode("it's"), first + 2]) == "it's"
    assert tokenizer.fingerprint != plain.fingerprint
    with pytest.raises(UserError, match="found no token '_start_'"):
        _ = plain.task_ids


def test_task_tokens_travel(gpt1, tmp_path):
    tokenizer = gpt1.with_task_tokens()
    assert Tokenizer.load(tokenizer.save(tmp_path)).task_ids == tokenizer.task_ids
    body = json.loads(tokenizer.to_json())
    body["added_tokens"] = body["added_tokens"][:2]  # <|endoftext|> and _start_
    (tmp_path / "tokenizer.json").write_text(json.dumps(body))
    mended = Tokenizer.load(tmp_path).with_task_tokens()
    assert mended.task_ids == tokenizer.task_ids


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


@pytest.mark.filterwarnings("default")
def test_transformers_opens_a_folder_of_gpt1s_kind_with_equal_ids(gpt1, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = gpt1.with_task_tokens()
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    texts = [*TEXTS[:-1], "“It’s” – naïve…\r\n\n CAFÉ e\u0301, isn't", "U.S. 10am, x_y\u00a0z"]
    assert [theirs(text)["input_ids"] for text in texts] == tokenizer.encode_batch(texts)
    assert (theirs.eos_token_id, theirs.unk_token_id) == (tokenizer.eos_id, 0)
    assert (
        theirs.decode(tokenizer.encode("It's bad.")) == tokenizer.decode(tokenizer.encode("It's bad.")) == "it's bad."
    )


def test_gpt1s_kind_mends_lowers_and_ends_with_eos(gpt1):
    assert gpt1.eos_id == gpt1.vocab_size - 1
    assert gpt1.encode("HELLO") == gpt1.encode("hello") == gpt1.encode("&#104;ello")
    assert len(gpt1.encode("hello")) == 1
    assert gpt1.encode("naÃ¯ve") == gpt1.encode("naïve")
    assert gpt1.encode_batch(TEXTS) == [gpt1.encode(text) for text in TEXTS]
    assert gpt1.eos_id not in gpt1.encode("a<|endoftext|>b")
    assert gpt1.decode([*gpt1.encode("Hello world"), gpt1.eos_id]) == "hello world"


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_two_files_are_the_tokenizer_they_came_from(gpt1, gpt2, tmp_path, pair):
    for kind, tokenizer in (("gpt1", gpt1), ("gpt2", gpt2)):
        opened = Tokenizer.load(write_pair(tmp_path / kind, tokenizer, pair))
        assert opened.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)


def test_the_newline_ends_a_text_where_nothing_else_can(gpt1, gpt2, tmp_path):
    folder = write_pair(tmp_path / "gpt1", gpt1, end=False)
    opened = Tokenizer.load(folder)
    assert opened.eos == "\n</w>"
    assert opened.encode("a\n\nb")[1] == opened.eos_id
    assert Tokenizer.load(opened.save(tmp_path / "saved").parent).eos_id == opened.eos_id
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<unk>"}')
    assert Tokenizer.load(folder).eos == "<unk>"
    headless = write_pair(tmp_path / "gpt2", gpt2, end=False)
    with pytest.raises(UserError, match=r"found no <\|endoftext\|>"):
        Tokenizer.load(headless)


def test_a_tokenizer_of_transformers_is_used_as_it_is(gpt1, tmp_path):

    backend = tokenizers.Tokenizer.from_str(gpt1.to_json())
    backend.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path).encode("It's\nnaive") == backend.encode("it ' s naive").ids


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
        "./nowhere": "'./nowhere', no such file",
        tmp_path: "no tokenizer.json",
        tmp_path / "broken.json": "no readable",
        headless: "no <",
    }
    for name, found in cases.items():
        with pytest.raises(UserError, match=f"^[^\n]*found {found}[^\n]*$"):
            Tokenizer.load(name)


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("merges.txt", None, r"merges\.txt: no such file, expected the other half of vocab\.json"),
        ("vocab.json", None, r"vocab\.json: no such file, expected the other half of merges\.txt"),
        ("vocab.json", "{", r"vocab\.json:1: found broken JSON"),
        ("vocab.json", "[" * 100_000, r"vocab\.json: found broken JSON \(more than 100 objects"),
        ("vocab.json", "[1]", r"vocab\.json: found no JSON object,"),
        ("vocab.json", '{"a": 0, "b": "1"}', r"vocab\.json: 'b': found id '1', expected a whole number"),
        ("vocab.json", '{"a": 0, "b": 0}', r"vocab\.json: 'b': found id 0, expected a whole number of its own"),
        ("merges.txt", "#version: 0.2\nx y\n", r"merges\.txt:2: found 'x y', expected two symbols of the vocabulary"),
        ("merges.txt", "hello\n", r"merges\.txt:1: found 'hello', expected two symbols"),
    ],
)
def test_mistakes_in_two_files_are_one_line(gpt1, tmp_path, name, text, found):
    write_pair(tmp_path, gpt1)
    if name == "vocab.json":
        (tmp_path / "merges.txt").write_text("")
    (tmp_path / name).unlink() if text is None else (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=rf"^[^\n]*{found}[^\n]*$"):
        Tokenizer.load(tmp_path)


def test_import_is_cheap():
    code = (
        "import sys, gpt_modules.data.text.tokenizers; assert not {'torch', 'lightning', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_characters_are_ids_and_what_was_not_seen_is_unknown(tmp_path):
    text = "to be, or not to be:\nthat is the question — 問"
    tokenizer = Tokenizer.train([text], 100, "characters")
    assert tokenizer.vocab_size == len(set(text)) + 2
    assert tokenizer.eos_id == tokenizer.vocab_size - 1
    ids = tokenizer.encode(text)
    assert (len(ids), tokenizer.decode(ids)) == (len(text), text)
    assert tokenizer.encode("bXe") == [tokenizer.encode("b")[0], 0, tokenizer.encode("e")[0]]
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).encode(text) == ids
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert (theirs(text)["input_ids"], theirs.decode(ids)) == (ids, text)


def test_fewer_ids_than_characters_keep_the_most_frequent():
    tokenizer = Tokenizer.train(["aaabbc", "aab"], 4, "characters")
    assert [tokenizer.decode([i]) for i in (1, 2)] == ["a", "b"]
    assert tokenizer.encode("cab") == [0, 1, 2]
    with pytest.raises(UserError, match="vocab_size: found 2, expected at least 3"):
        Tokenizer.train(["abc"], 2, "characters")
