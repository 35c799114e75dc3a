"""A tokenizer that is broken or is none is one line that names it, at once."""

import hashlib
import json
import os

import pytest
import tokenizers

from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError


def edited(change):
    """A small tokenizer's JSON after a change of it."""
    form = json.loads(Tokenizer.train(["hello world hello world"], 262).to_json())
    change(form)
    return json.dumps(form)


def renumber(number):
    def change(form):
        vocabulary = form["model"]["vocab"]
        vocabulary[max(vocabulary, key=vocabulary.get)] = number

    return change


SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "found no readable tokenizer (EOF while parsing"),
        ("[" * 100_000, "found no readable tokenizer ("),
        ("\ufeff{}", "found no readable tokenizer (expected value"),
        (edited(renumber(-1)), "found no readable tokenizer (invalid value: integer `-1`"),
        (edited(renumber(1 << 30)), "found id 1073741824, expected ids below 16,777,216"),
        (edited(renumber(0)), "found id 0 for both "),
        (edited(lambda form: form["model"].update(vocab={}, merges=[])), "found no symbols in its vocabulary"),
        (edited(lambda form: form["model"].update(dropout=0.5)), "dropout: found 0.5, expected none"),
        (edited(lambda form: form["model"]["merges"].append(["qq", "zz"])), "(Token `qq` out of vocabulary"),
        (edited(lambda form: form.update(pre_tokenizer={**SPLIT, "pattern": {"Regex": "(["}})), "(Oniguruma error"),
    ],
)
def test_a_broken_tokenizer_is_one_line_that_names_its_file(tmp_path, text, found):
    path = tmp_path / "tokenizer.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        Tokenizer.load(tmp_path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert found in line
    assert "\n" not in line
    assert len(line) < 400 + len(str(path))


def test_bytes_that_are_no_text_and_pipes_are_refused(tmp_path):
    for name, content in (("text", b"\xff\xfe{}"), ("pipe", None)):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "tokenizer.json"
        os.mkfifo(path) if content is None else path.write_bytes(content)
        with pytest.raises(UserError, match=r"found no (readable tokenizer \(stream did not|tokenizer\.json in this)"):
            Tokenizer.load(tmp_path / name)


@pytest.mark.parametrize(
    "change",
    [
        lambda form: form.update(pre_tokenizer={**SPLIT, "pattern": {"Regex": "(a+)+$"}}),
        lambda form: form.update(model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "<unk>"}),
    ],
)
def test_what_a_tokenizer_cannot_encode_is_said_in_a_line(change):
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(edited(change)))
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_batch([text])):
        with pytest.raises(UserError, match=r"^tokenizer: could not encode a text \([^\n]*\), expected one that can$"):
            encode("a" * 60 + "!")


def test_broken_settings_beside_a_tokenizer_are_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text(edited(lambda form: form.update(added_tokens=[])))
    (tmp_path / "tokenizer_config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"tokenizer_config\.json: found broken JSON \(more than 100 objects"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["~nobody-of-this-name/x", "n" * 5000, "a\0b", "", " ", "train", "gpt-2", "gpt2.json"])
def test_a_name_that_is_no_tokenizer_is_one_line_at_once(monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(UserError, match="found") as caught:
        Tokenizer.load(name)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_a_tokenizer_altered_since_its_export_is_not_opened(tmp_path):
    text = edited(lambda form: None)
    written = {"gpt_modules": {"tokenizer_sha256": hashlib.sha256(text.encode()).hexdigest()}}
    (tmp_path / "config.json").write_text(json.dumps(written))
    (tmp_path / "tokenizer.json").write_text(text)
    Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text(edited(lambda form: form.update(normalizer={"type": "Lowercase"})))
    for name in (tmp_path, tmp_path / "tokenizer.json"):
        with pytest.raises(UserError, match=r"tokenizer\.json: found altered since it was exported, expected the tok"):
            Tokenizer.load(name)
    (tmp_path / "config.json").write_text("{}")  # as folders of others and of earlier versions are
    Tokenizer.load(tmp_path)


def test_an_adapter_is_told_for_what_it_is(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"found an adapter, expected a model: the export beside it has its updates"):
        Tokenizer.load(tmp_path)
