"""Tokenizers of today's families, built in code, against `transformers` on the same folder; and what begins a text."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from gpt_modules.backbone import GPT, DecoderConfig, save_pretrained
from gpt_modules.data.batches import TokenBatch
from gpt_modules.data.collate import isolate_documents, join_row
from gpt_modules.data.corpus.shard_writer import write_shards
from gpt_modules.data.corpus.shards import open_shards
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError
from gpt_modules.evaluation.tasks.prompts import encode_pairs

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
CORPUS = ["the cat sat on the mat, and then it's 12345 of them\n\n  again:\t{x}", "café naïve 你好 the end"] * 4
HARD = [
    "a", "the cat", " the", "  two  spaces ", "\n", " \n\n x\n", "\t\r\n", "12345678", "it's I'LL",
    "café e\u0301 naïve",
    "你好，世界", "🙂👩‍👩‍👧", "a\0b",
    "\u00a0x\u2028y\ufeff", "   ", "<|im_start>", "x = {1: [2]};\n    return x\n", "a" * 300,
    "▁a ▁", "<0x41>", "ﬁ Ａ", "the<tool>cat",
]  # fmt: skip


def spaced(kind: str) -> tokenizers.Tokenizer:
    """Llama 2's and Mistral's: pieces with byte fallback, whose spaces are `▁`."""
    symbols = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefhinorstu."]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "a"), ("▁", "▁"), ("a", "t"), ("▁▁", "▁▁")]
    vocabulary = {symbol: i for i, symbol in enumerate([*symbols, *(left + right for left, right in merges)])}
    model = models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    if kind == "prepend":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=kind, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps if kind == "never" else [*steps, decoders.Strip(" ", 1, 0)])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in symbols[:3]])
    return backend


def byte_level(kind: str) -> tokenizers.Tokenizer:
    """Llama 3's, Qwen's, SmolLM's and Pythia's."""
    backend = tokenizers.Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
    pattern = {"llama3": LLAMA3, "qwen": QWEN}.get(kind)
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    split = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), "isolated")]
    digits = [pre_tokenizers.Digits(individual_digits=True)] if kind == "smollm" else []
    backend.pre_tokenizer = pre_tokenizers.Sequence([*split, *digits, bytes_alone])
    backend.normalizer = normalizers.NFC() if kind in ("qwen", "neox") else None
    backend.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer=trainer)
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
    backend.add_tokens([AddedToken("<tool>", normalized=False, lstrip=kind == "qwen")])
    if kind == "neox":
        backend.add_tokens([AddedToken("   ", normalized=True), AddedToken("    ", normalized=True)])
    if kind == "llama3":
        name = "<|begin_of_text|>"
        begin = processors.TemplateProcessing(single=f"{name} $A", special_tokens=[(name, backend.token_to_id(name))])
        backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), begin])
    return backend


KINDS = ["prepend", "first", "always", "never", "llama3", "qwen", "smollm", "neox"]
SPACED = KINDS[:4]


def folder_of(kind: str, folder: Path) -> Path:
    backend, eos = (spaced(kind), "</s>") if kind in SPACED else (byte_level(kind), "<|im_end|>")
    backend.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_texts_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = folder_of(kind, tmp_path)
    ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    assert ours.eos_id == theirs.eos_token_id
    assert ours.opening(HARD) == [theirs(text).input_ids for text in HARD]
    assert ours.encode_batch(HARD) == [theirs(text, add_special_tokens=False).input_ids for text in HARD]
    assert [ours.decode(ids) for ids in ours.opening(HARD)] == theirs.batch_decode(
        ours.opening(HARD), skip_special_tokens=True
    )
    ours.save(tmp_path / "again")
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert [again(text).input_ids for text in HARD] == ours.opening(HARD)


@pytest.mark.parametrize("kind", KINDS)
def test_what_goes_on_a_text_is_a_part_of_it(kind: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(folder_of(kind, tmp_path))
    for answer in [" the cat", "the cat", "  at", "\nx", " ", "é"]:
        ids = tokenizer.within.encode(answer)
        assert tokenizer.within.decode(ids) == answer
        assert tokenizer.decode([*tokenizer.opening(["Q:"])[0], *ids]) == "Q:" + answer
    assert (tokenizer.within is tokenizer) == (kind not in SPACED[:3])
    assert tokenizer.within.within is tokenizer.within


@pytest.mark.parametrize("kind", KINDS)
def test_control_tokens_that_somebody_typed_stay_text(kind: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(folder_of(kind, tmp_path))
    form = json.loads(tokenizer.to_json())
    special = {token["id"]: token["content"] for token in form["added_tokens"] if token["special"]}
    for reading in (tokenizer, tokenizer.within):
        for name in special.values():
            ids = reading.encode(f"a{name} {name}b")
            assert not special.keys() & set(ids)
            assert reading.decode(ids) == f"a{name} {name}b"


def test_who_begins_a_sequence_is_what_the_family_says(tmp_path: Path) -> None:
    begins = {}
    for kind in KINDS:
        (tmp_path / kind).mkdir()
        begins[kind] = Tokenizer.load(folder_of(kind, tmp_path / kind)).bos_id
    assert {kind: begins[kind] is not None for kind in KINDS} == {kind: kind in (*SPACED, "llama3") for kind in KINDS}
    assert begins["first"] == 1
    gpt2 = Tokenizer.gpt2()
    assert gpt2.bos_id is None
    assert gpt2.within is gpt2
    assert gpt2.opening(["a b"]) == [gpt2.encode("a b")]


@pytest.mark.parametrize("kind", ["prepend", "llama3", "qwen"])
def test_a_models_folder_begins_and_ends_as_its_base(kind: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = Tokenizer.load(folder_of(kind, tmp_path))
    model = GPT(DecoderConfig(vocab_size=400, n_positions=16, n_layer=1, n_head=2, n_embd=8))
    save_pretrained(tmp_path / "m", model, tokenizer_json=tokenizer.to_json(), chat=tokenizer.chat_files())
    again, theirs = Tokenizer.load(tmp_path / "m"), AutoTokenizer.from_pretrained(tmp_path / "m")
    assert again.reads_like(tokenizer)
    assert (again.bos_id, again.eos_id, again.end_ids) == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.end_ids)
    assert [theirs(text).input_ids for text in HARD] == tokenizer.opening(HARD)
    config = AutoConfig.from_pretrained(tmp_path / "m")
    assert config.eos_token_id == theirs.eos_token_id == tokenizer.eos_id
    assert tokenizer.bos_id is None or config.bos_token_id == theirs.bos_token_id == tokenizer.bos_id


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokens_of_labelled_rows_are_around_a_text_in_transformers_and_not_here(kind: str, tmp_path: Path) -> None:
    """What begins and ends a row is what `join_row` has, cut or not, and whoever opens it here has the tokenizer that
    was exported.
    """
    from transformers import AutoTokenizer

    tokenizer = Tokenizer.load(folder_of(kind, tmp_path)).with_task_tokens()
    (tmp_path / "tokenizer.json").write_text(tokenizer.task_json())
    again, theirs = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer.encode_batch(HARD)
    rows = [join_row([own], tokenizer.task_ids, tokenizer.begin).tolist() for own in ids]
    assert [theirs(text).input_ids for text in HARD] == rows
    pairs = [join_row([own, ids[0]], tokenizer.task_ids, tokenizer.begin).tolist() for own in ids]
    assert [theirs(text, HARD[0]).input_ids for text in HARD] == pairs
    cut = theirs("the cat sat", truncation=True, max_length=5).input_ids
    room = 5 - 2 - len(tokenizer.begin)
    assert cut == join_row([tokenizer.encode("the cat sat")[:room]], tokenizer.task_ids, tokenizer.begin).tolist()
    assert (again.bos_id, again.eos_id, again.task_ids) == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.task_ids)
    assert again.opening(HARD) == tokenizer.opening(HARD)
    assert again.reads_like(tokenizer)
    assert again.reads_like(Tokenizer.load(folder_of(kind, tmp_path)))
    assert again.task_json() == tokenizer.task_json()
    assert tokenizer.bos_id is not None or again.fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_ids_that_only_a_models_files_say_are_said_again(file: str, tmp_path: Path) -> None:
    """config.json's where there is no other, and those of added tokens alone: its defaults may be any."""
    folder = folder_of("qwen", tmp_path)
    added = [token["id"] for token in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]]
    first, last, plain = added[0], added[-1], 5
    ids = {"eos_token_id": [first, plain], "bos_token_id": last, "pad_token_id": last}
    (folder / file).write_text(json.dumps(ids))
    tokenizer = Tokenizer.load(folder)
    assert first in tokenizer.end_ids
    assert (plain in tokenizer.end_ids) == (file == "generation_config.json")
    model = GPT(DecoderConfig(vocab_size=400, n_positions=16, n_layer=1, n_head=2, n_embd=8))
    save_pretrained(tmp_path / "m", model, tokenizer_json=tokenizer.to_json(), chat=tokenizer.chat_files())
    for name in ("config.json", "generation_config.json"):
        kept = json.loads((tmp_path / "m" / name).read_text())
        assert (kept["bos_token_id"], kept.get("pad_token_id")) == (last, None if last in tokenizer.end_ids else last)
    again = Tokenizer.load(tmp_path / "m")
    assert (again.end_ids, again.bos_id) == (tokenizer.end_ids, tokenizer.bos_id)


def test_documents_follow_one_another_as_the_family_reads_them(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(folder_of("prepend", tmp_path))
    write_shards(tmp_path / "shards", [["the cat"], ["a"]], tokenizer)
    tokens = open_shards(tmp_path / "shards", tokenizer)[0]
    first, second = tokenizer.opening(["the cat", "a"])
    assert np.asarray(tokens[:]).tolist() == [*first, tokenizer.eos_id, *second, tokenizer.eos_id, tokenizer.bos_id]
    window = torch.tensor([[*first, tokenizer.eos_id, *second]])
    alone = isolate_documents(TokenBatch(window, window), tokenizer.start_id)
    assert alone.positions[0].tolist() == [*range(len(first) + 1), *range(len(second))]
    ((context, answer), (empty, whole)) = encode_pairs(tokenizer, [("the", " cat"), ("", "cat")], end_token=False)
    assert context + answer == first
    assert (empty, whole) == ([tokenizer.bos_id], tokenizer.encode("cat"))


def test_a_begin_token_makes_another_tokenizer(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(folder_of("first", tmp_path))
    backend = spaced("first")
    backend.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    assert not tokenizer.reads_like(Tokenizer(backend, "</s>"))
    assert tokenizer.reads_like(Tokenizer(spaced("first"), "</s>"))


def test_opts_two_files_begin_and_end_as_transformers_has_it(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols = ["<s>", "<pad>", "</s>", "<unk>", *alphabet, "Ġt"]
    (tmp_path / "vocab.json").write_text(json.dumps({symbol: i for i, symbol in enumerate(symbols)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nĠ t\n", encoding="utf-8")
    names = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    settings = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "add_prefix_space": False}
    settings |= {name: {"__type": "AddedToken", "content": token} for name, token in names.items()}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "opt"}))
    ours, theirs = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert (ours.bos_id, ours.eos_id) == (2, 2) == (theirs.bos_token_id, theirs.eos_token_id)
    assert ours.opening(HARD) == [theirs(text).input_ids for text in HARD]
    assert Tokenizer.load(ours.save(tmp_path / "saved")).opening(HARD) == ours.opening(HARD)


@pytest.mark.parametrize(("name", "found"), [("generation_config.json", [9, 2]), ("config.json", 2)])
def test_the_end_token_may_stand_in_the_models_configuration(name: str, found: object, tmp_path: Path) -> None:
    folder = folder_of("first", tmp_path)
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match=r"found no <\|endoftext\|> and no eos_token"):
        Tokenizer.load(folder)
    (folder / name).write_text(json.dumps({"eos_token_id": found}))
    assert Tokenizer.load(folder).eos == "</s>"


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    folder = folder_of("first", tmp_path)
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    with pytest.raises(UserError, match=r"config\.json: eos_token: found '<end>', expected a token of the vocabulary$"):
        Tokenizer.load(folder)
    two = spaced("first")
    two.post_processor = processors.TemplateProcessing(single="<s> </s> $A", special_tokens=[("<s>", 1), ("</s>", 2)])
    with pytest.raises(UserError, match="found 2 tokens before a text, expected at most one"):
        Tokenizer(two, "</s>")
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((letter, -9.0) for letter in "a</s>")]
    with pytest.raises(UserError, match="found that the characters '</s>' become the special token of that name"):
        Tokenizer(tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0)), "</s>")
    with pytest.raises(UserError, match="could not encode a text"):
        Tokenizer.gpt2().encode("\ud800")


def test_an_end_token_that_is_an_ordinary_added_one_becomes_special() -> None:
    backend = tokenizers.Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate("a<end>")}, merges=[]))
    backend.add_tokens(["<end>"])
    tokenizer = Tokenizer(backend, "<end>")
    assert tokenizer.eos_id not in tokenizer.encode("a<end>")
