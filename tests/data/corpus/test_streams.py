"""A source as two parts: what validates is neither trained on, nor seen by a tokenizer that is trained."""

import json
import os

import pytest

from gpt_modules.data.corpus import streams
from gpt_modules.data.corpus.mixture import MixedSource
from gpt_modules.data.corpus.streams import Corpus
from gpt_modules.data.pretraining import PretrainingDataModule
from gpt_modules.data.splits import split_of
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError


def write_rows(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def texts_of(corpus, split):
    return ["".join(document) for document in corpus.documents(split)]


def test_documents_part_by_hash_and_do_not_move_when_the_file_grows(tmp_path):
    texts = [f"number {i}" for i in range(400)]
    corpus = Corpus(write_rows(tmp_path / "a.jsonl", texts), validation_fraction=0.1)
    held_out = [text for text in texts if split_of(text, 0.1) == "validation"]
    assert texts_of(corpus, "validation") == held_out
    assert texts_of(corpus, "train") == [text for text in texts if text not in held_out]


def test_the_end_of_few_documents_validates(tmp_path):
    (tmp_path / "a.txt").write_text("one two three\n")
    (tmp_path / "b.txt").write_text("four five six seven")
    corpus = Corpus(str(tmp_path), validation_fraction=0.3)
    assert texts_of(corpus, "train") == ["one two three\n", "four five"]
    assert texts_of(corpus, "validation") == [" six seven"]


def test_a_trained_tokenizer_does_not_see_the_end_that_validates(tmp_path):
    (tmp_path / "a.txt").write_text("abc " * 90 + "xyz " * 10)
    data = PretrainingDataModule(
        train=str(tmp_path / "a.txt"),
        tokenizer="train",
        tokenizer_kind="characters",
        vocab_size=32,
        context=4,
        validation_fraction=0.1,
        cache_dir=str(tmp_path / "cache"),
    )
    data.prepare_data()
    assert data.tokenizer.decode(data.tokenizer.encode("abxz")) == "ab<unk><unk>"
    data.setup("fit")
    assert data.tokenizer.decode(data.validation_tokens.tolist()) == " <unk><unk><unk>" * 10 + " "


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_file_that_changes_while_it_is_read_leaves_no_tokens_under_its_old_content(tmp_path, monkeypatch, name):
    path, tokenizer = tmp_path / name, Tokenizer.train(["abc"], 16, "characters")

    def write(text):
        path.write_text(text if name == "a.txt" else json.dumps({"text": text}) + "\n")
        os.utime(path, (1e9, 1e9))

    def corpus():
        return Corpus(str(path), cache_dir=str(tmp_path / "cache"), whole=True)

    write("aaaa")
    fingerprint = streams.fingerprint

    def then_changed(source, split):
        found = fingerprint(source, split)
        write("bbbb")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(streams, "fingerprint", then_changed)
        with pytest.raises(UserError) as caught:
            corpus().open(tokenizer)
    assert str(caught.value) == f"{path}: found it changed while it was read, expected files that stay"
    for text in ("aaaa", "bbbb"):
        write(text)
        assert tokenizer.decode(corpus().open(tokenizer)[0].tolist()) == text


def test_the_same_bytes_are_one_copy_under_any_name_and_date(tmp_path):
    first, second = (Corpus(write_rows(tmp_path / name, ["a", "b"])) for name in ("a.jsonl", "b.jsonl"))
    os.utime(tmp_path / "b.jsonl", (1e9, 1e9))
    assert first.key("train") == second.key("train") != first.key("validation")
    os.utime(tmp_path / "a.jsonl", (1e9, 1e9))
    write_rows(tmp_path / "a.jsonl", ["a", "c"])
    os.utime(tmp_path / "a.jsonl", (1e9, 1e9))
    assert Corpus(str(tmp_path / "a.jsonl")).key("train") != second.key("train")


def test_no_document_for_a_split_is_said(tmp_path):
    source = write_rows(tmp_path / "a.jsonl", [f"number {i}" for i in range(100)])
    with pytest.raises(UserError) as caught:
        texts_of(Corpus(source, validation_fraction=1e-9), "validation")
    assert str(caught.value) == (
        f"{source}: found no document for validation by hash with validation_fraction 1e-09, expected another "
        "fraction, or a validation source"
    )


@pytest.mark.parametrize("mixed", [False, True])
def test_text_may_not_train_and_validate(tmp_path, mixed):
    source = write_rows(tmp_path / "a.jsonl", ["abc"])
    again = write_rows(tmp_path / "b.jsonl", ["abc"])
    train = {"mixture": [MixedSource(source, 1.0)]} if mixed else {"train": source}
    data = PretrainingDataModule(**train, validation=again, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(UserError) as caught:
        data.prepare_data()
    assert str(caught.value) == (
        f"validation: found {again}, the content of the training file {source}, expected rows that are not trained on"
    )
    assert not (tmp_path / "cache").exists()
