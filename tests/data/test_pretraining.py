import json

import numpy as np
import pytest

from gpt_modules.data.corpus.mixture import MixedSource
from gpt_modules.data.corpus.shard_writer import write_shards
from gpt_modules.data.pretraining import PretrainingDataModule
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError


def ready(tmp_path, **kwargs):
    data = PretrainingDataModule(cache_dir=str(tmp_path / "cache"), **kwargs)
    data.prepare_data()
    data.setup("fit")
    return data


def test_reviews_end_to_end(tmp_path):
    data = ready(tmp_path, tokenizer="train", vocab_size=512, context=64, batch_size=8)
    batch = next(iter(data.train_dataloader()))
    assert batch.inputs.shape == batch.labels.shape == (8, 64)
    assert (batch.inputs[:, 1:] == batch.labels[:, :-1]).all()
    assert int(batch.inputs.max()) < data.tokenizer.vocab_size == 512
    seen = sum(int((b.labels >= 0).sum()) for b in data.val_dataloader())
    assert seen == len(data.validation_tokens) - 1
    assert ready(tmp_path, tokenizer="train", vocab_size=512).tokenizer.fingerprint == data.tokenizer.fingerprint


def test_documents_of_a_file_are_parted_by_their_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"number {i}"}) + "\n" for i in range(300)))
    sides = []
    for streaming in (False, True):
        data = ready(tmp_path, train=str(path), context=8, validation_fraction=0.1, streaming=streaming)
        texts = [
            set(data.tokenizer.decode(tokens, skip_special=False).split("<|endoftext|>")) - {""}
            for tokens in (data.train_tokens.tolist(), data.validation_tokens.tolist())
        ]
        assert not texts[0] & texts[1]
        assert texts[0] | texts[1] == {f"number {i}" for i in range(300)}
        assert 10 <= len(texts[1]) <= 60
        sides.append(texts)
    assert sides[0] == sides[1]


def test_the_end_of_one_long_text_validates(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(f"line {i}" for i in range(200)))
    data = ready(tmp_path, train=str(tmp_path / "a.txt"), context=8, validation_fraction=0.25)
    train, validation = data.train_tokens.tolist(), data.validation_tokens.tolist()
    text = (tmp_path / "a.txt").read_text()
    assert data.tokenizer.decode(train + validation) == text
    assert validation[0] == train[-1] == data.tokenizer.eos_id
    assert len(data.tokenizer.decode(validation)) == pytest.approx(0.25 * len(text), abs=len("line 199"))


def test_a_changed_file_is_encoded_anew(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a b c d e f g h i j k l m n o p")
    before = ready(tmp_path, train=str(path), context=2).train_tokens.tolist()
    path.write_text("A B C D E F G H I J K L M N O P")
    assert ready(tmp_path, train=str(path), context=2).train_tokens.tolist() != before


def test_the_kind_of_a_trained_tokenizer(tmp_path):
    (tmp_path / "a.txt").write_text("One line.\nAnother LINE, isn't it?\n" * 30)
    options = {"train": str(tmp_path / "a.txt"), "tokenizer": "train", "vocab_size": 280, "context": 8}
    gpt2, gpt1 = (ready(tmp_path, **options, tokenizer_kind=kind).tokenizer for kind in ("gpt2", "gpt1"))
    assert gpt1.encode("LINE") == gpt1.encode("line")
    assert gpt2.encode("LINE") != gpt2.encode("line")
    assert ready(tmp_path, **options).tokenizer.fingerprint == gpt2.fingerprint


def test_paragraphs_are_documents_where_the_newline_is_the_end_token(tmp_path):
    vocabulary = ["<unk>", "a", "a</w>", "\n</w>"]
    (tmp_path / "vocab.json").write_text(json.dumps({symbol: i for i, symbol in enumerate(vocabulary)}))
    (tmp_path / "merges.txt").write_text("")
    (tmp_path / "a.txt").write_text("a aa\n\na\n" * 10)
    data = ready(tmp_path, train=str(tmp_path / "a.txt"), tokenizer=str(tmp_path), context=6, isolate_documents=True)
    assert data.tokenizer.eos_id == 3
    packed = next(iter(data.val_dataloader()))
    assert data.train_tokens[:8].tolist() == [3, 2, 1, 2, 3, 2, 3, 2]
    ends = packed.inputs == 3
    assert ends.any()
    assert (packed.positions[ends] == 0).all()


def test_training_a_tokenizer_needs_a_size(tmp_path):
    with pytest.raises(UserError, match="vocab_size: found none, expected a number"):
        ready(tmp_path, tokenizer="train")


def test_the_constructor_touches_no_file():
    PretrainingDataModule(train="nowhere.jsonl", tokenizer="./nowhere")


def write_rows(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


@pytest.fixture
def sources(tmp_path):
    """200 numbered lines as JSON, 300 lines of another alphabet as tokens, and a vocabulary for both."""
    texts = {"a": [f"{i:04d} " * 12 for i in range(200)], "b": [f"x{i:03d}y " * 9 for i in range(300)]}
    tokenizer = Tokenizer.train([*texts["a"], *texts["b"]], 32, "characters")
    tokenizer.save(tmp_path / "tokenizer")
    write_shards(tmp_path / "b", ([text] for text in texts["b"]), tokenizer, shard_tokens=1000)
    return write_rows(tmp_path / "a.jsonl", texts["a"]), str(tmp_path / "b"), str(tmp_path / "tokenizer")


def mixed(tmp_path, sources, **kwargs):
    text, tokens, tokenizer = sources
    mixture = [MixedSource(text, 3.0, name="text"), MixedSource(tokens, 1.0, name="tokens")]
    return ready(tmp_path, tokenizer=tokenizer, mixture=mixture, context=10, batch_size=8, **kwargs)


def test_a_mixture_of_text_and_tokens(tmp_path, sources, caplog):
    data = mixed(tmp_path, sources)
    loader = data.train_dataloader()
    windows = [data.tokenizer.decode(row.tolist()) for batch in loader for row in batch.inputs]
    of_tokens = sum("x" in window or "y" in window for window in windows)
    assert of_tokens / len(windows) == pytest.approx(0.25, abs=0.01)
    mix = data.realised_mix()
    assert mix["share/tokens"] == pytest.approx(of_tokens / len(windows), abs=0.002)
    assert mix["tokens/text"] + mix["tokens/tokens"] == len(windows) * 10
    assert mix["epochs/text"] > 1 > mix["epochs/tokens"] > 0
    total = sum(len(part) - 1 for part in (data.train_tokens, data.validation_tokens))
    assert total == pytest.approx(200 * 61 + 300 * 55, abs=4)
    held_out = data.tokenizer.decode(data.validation_tokens.tolist(), skip_special=False)
    assert set("0123456789xy ") <= set(held_out)
    assert "<|endoftext|><|endoftext|>" not in held_out


def test_a_mixture_goes_on_where_it_stopped(tmp_path, sources):
    whole = mixed(tmp_path, sources)
    loader = whole.train_dataloader()
    batches = [batch.inputs.tolist() for batch in loader] + [batch.inputs.tolist() for batch in loader]
    first = mixed(tmp_path, sources)
    stopped = first.train_dataloader()
    steps = len(stopped) + 5
    for _ in range(2):
        for _ in zip(range(min(steps, len(stopped))), stopped, strict=False):
            pass
        steps -= len(stopped)
    second = mixed(tmp_path, sources)
    second.load_state_dict(first.state_dict())
    rest = [batch.inputs.tolist() for batch in second.train_dataloader()]
    assert rest == batches[2 * len(stopped) - len(rest) :]
    assert 0 < len(rest) < len(stopped)
    assert second.realised_mix() == whole.realised_mix()


def test_a_mixture_with_its_own_validation_trains_on_all(tmp_path, sources):
    validation = write_rows(tmp_path / "v.jsonl", ["0000 1111"] * 5)
    data = mixed(tmp_path, sources, validation=validation, isolate_documents=True)
    assert len(data.train_tokens) == 200 * 61 + 300 * 55 + 2
    assert len(data.validation_tokens) == 5 * 10 + 1
    packed = next(iter(data.train_dataloader()))
    opens = packed.inputs == data.tokenizer.eos_id
    assert opens.any()
    assert (packed.positions[opens] == 0).all()


def test_train_beside_a_mixture_is_refused(tmp_path, sources):
    with pytest.raises(UserError, match=r"mixture: found .* beside train .*, expected either"):
        mixed(tmp_path, sources, train=sources[0])


def test_a_trained_tokenizer_reads_all_of_a_mixture(tmp_path, sources):
    mixture = [MixedSource(write_rows(tmp_path / f"{c}.jsonl", [c * i for i in range(1, 121)]), 1.0) for c in "pq"]
    data = ready(tmp_path, mixture=mixture, tokenizer="train", tokenizer_kind="characters", vocab_size=9, context=4)
    assert data.tokenizer.decode(data.tokenizer.encode("pqz")) == "pq<unk>"
    with pytest.raises(UserError, match="found tokens, expected text to train a tokenizer on"):
        ready(tmp_path, train=sources[1], tokenizer="train", vocab_size=9, tokenizer_kind="characters")


def test_text_beside_tokens_in_one_source_is_refused(tmp_path, sources):
    with pytest.raises(UserError, match="found text and tokens in one source"):
        ready(tmp_path, train=list(sources[:2]), tokenizer=sources[2], context=4)


def test_tokens_of_llmc(tmp_path):
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, 500
    for part in ("train", "val"):
        ids = np.arange(500, dtype="<u2") + (1000 if part == "val" else 0)
        (tmp_path / f"set_{part}_0.bin").write_bytes(header.tobytes() + ids.tobytes())
    data = ready(tmp_path, train=str(tmp_path / "*_train_*.bin"), validation=str(tmp_path / "*_val_*.bin"), context=9)
    assert data.train_tokens.tolist() == list(range(500))
    assert data.validation_tokens.tolist() == list(range(1000, 1500))


def test_a_tokenizer_altered_in_the_cache_is_trained_anew(tmp_path, caplog):
    (tmp_path / "a.txt").write_text("low lower lowest " * 20)
    options = {"train": str(tmp_path / "a.txt"), "tokenizer": "train", "vocab_size": 262, "context": 8}
    trained = ready(tmp_path, **options).tokenizer.fingerprint
    (path,) = (tmp_path / "cache" / "tokenizers").glob("*/tokenizer.json")
    form = json.loads(path.read_text())
    written = path.stat().st_ino
    assert ready(tmp_path, **options).tokenizer.fingerprint == trained
    assert (path.stat().st_ino, caplog.text) == (written, "")  # what is whole stays
    path.write_text(json.dumps({**form, "normalizer": {"type": "Lowercase"}}))
    assert ready(tmp_path, **options).tokenizer.fingerprint == trained
    assert json.loads(path.read_text()) == form
    assert "tokenizer.json: found altered since it was trained; trained anew" in caplog.text


def test_a_cache_that_cannot_be_written_is_told_before_a_tokenizer_is_trained(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("low lower lowest " * 20)
    (tmp_path / "cache").write_text("")
    monkeypatch.setattr(Tokenizer, "train", lambda *_: pytest.fail("trained"))
    with pytest.raises(UserError, match=r"cache/tokenizers/\w+: could not be written \(Not a directory"):
        ready(tmp_path, train=str(tmp_path / "a.txt"), tokenizer="train", vocab_size=262, context=8)
