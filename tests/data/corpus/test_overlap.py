"""Documents on both sides are counted, whatever normalisation ignores, and both sides are read once."""

import json
import unicodedata

import pytest

from gpt_modules.data.corpus import overlap
from gpt_modules.data.corpus.mixture import MixedSource
from gpt_modules.data.corpus.streams import Corpus
from gpt_modules.data.pretraining import PretrainingDataModule
from gpt_modules.data.rows import sources


@pytest.fixture
def write(tmp_path):
    def file(name, texts):
        (tmp_path / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return str(tmp_path / name)

    return file


def warned(caplog, train, validation, tmp_path, **kwargs):
    sources.tell_shared.cache_clear()
    caplog.clear()
    corpora = [
        Corpus(source, whole=True, cache_dir=str(tmp_path / "cache"), **kwargs) for source in (train, validation)
    ]
    overlap.warn_of_shared_documents(*corpora)
    return [record.getMessage() for record in caplog.records]


def test_documents_of_both_sides_are_counted_once_and_told_each_time(write, tmp_path, caplog, monkeypatch):
    train = write("a.jsonl", ["One text", "two", "três", "four"])
    twins = ["one  TEXT", unicodedata.normalize("NFD", "três"), "one text", "five"]
    validation = write("b.jsonl", twins)
    line = f"{validation}: 3 of 4 validation documents are in the training documents too"
    assert warned(caplog, train, validation, tmp_path) == [line]
    with monkeypatch.context() as patch:
        patch.setattr(overlap, "_count", lambda *_: pytest.fail("it was counted before"))
        assert warned(caplog, train, validation, tmp_path) == [line]
    write("a.jsonl", ["one text", "two"])  # another content is counted anew
    assert warned(caplog, train, validation, tmp_path) == [line.replace("3 of", "2 of")]
    assert warned(caplog, write("c.jsonl", ["six"]), validation, tmp_path) == []


def test_a_count_that_cannot_be_read_or_kept_is_made_again(write, tmp_path, caplog):
    train, validation = write("a.jsonl", ["one"]), write("b.jsonl", ["one"])
    line = f"{validation}: 1 of 1 validation documents are in the training documents too"
    assert warned(caplog, train, validation, tmp_path) == [line]
    (kept,) = (tmp_path / "cache" / "shared").iterdir()
    kept.write_text("not a count")
    assert warned(caplog, train, validation, tmp_path) == [line]
    assert kept.read_text() == "1 1\n"
    kept.unlink()
    kept.parent.rmdir()
    kept.parent.write_text("a file in its place")
    assert warned(caplog, train, validation, tmp_path) == [line]


def test_of_a_long_document_its_beginning_counts(tmp_path, caplog):
    for name, end in (("a", "x"), ("b", "y")):
        (tmp_path / f"{name}.txt").write_text("word " * overlap.PIECE + end)
    validation = str(tmp_path / "b.txt")
    assert warned(caplog, str(tmp_path / "a.txt"), validation, tmp_path) == [
        f"{validation}: 1 of 1 validation documents are in the training documents too"
    ]


def test_what_is_streamed_from_the_hub_is_not_fetched_twice(write, tmp_path, caplog):
    assert warned(caplog, "nobody/nothing", write("b.jsonl", ["one"]), tmp_path, streaming=True) == []


@pytest.mark.parametrize("mixed", [False, True])
def test_pretraining_tells(write, tmp_path, caplog, mixed):
    train, validation = write("a.jsonl", ["one two three"] * 9), write("b.jsonl", ["one two three", "four"])
    source = {"mixture": [MixedSource(train, 1.0)]} if mixed else {"train": train}
    data = PretrainingDataModule(**source, validation=validation, context=4, cache_dir=str(tmp_path / "cache"))
    data.prepare_data()
    data.setup("fit")
    assert [record.getMessage() for record in caplog.records] == [
        f"{validation}: 1 of 2 validation documents are in the training documents too"
    ]
