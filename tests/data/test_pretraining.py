import json

import numpy as np
import pytest

from gpt_modules.data.pretraining import PretrainingDataModule, TrainingWindows, ValidationWindows
from gpt_modules.errors import UserError


def ready(tmp_path, **kwargs):
    data = PretrainingDataModule(cache_dir=str(tmp_path / "cache"), **kwargs)
    data.prepare_data()
    data.setup("fit")
    return data


@pytest.mark.parametrize(("count", "context"), [(100, 7), (23, 11), (12, 11), (1000, 10)])
def test_no_token_is_learned_twice_in_an_epoch(count, context):
    windows = TrainingWindows(np.arange(count), context, seed=0)
    for epoch in range(5):
        batch = windows.batch(epoch, np.arange(len(windows)))
        assert (batch.labels == batch.inputs + 1).all()
        assert batch.labels.unique().numel() == len(windows) * context
        assert len(windows) * context > count - 2 * context - 1


def test_borders_move_with_the_epoch_and_the_seed():
    windows, other = (TrainingWindows(np.arange(1000), 50, seed) for seed in (0, 1))
    offsets = [windows.offset(epoch) for epoch in range(1000)]
    assert set(offsets) == set(range(50))
    assert offsets != [other.offset(epoch) for epoch in range(1000)]


def test_a_text_shorter_than_a_window_is_refused():
    with pytest.raises(UserError, match="context: found 8, expected less than the 8 tokens"):
        TrainingWindows(np.arange(8), 8, 0)


@pytest.mark.parametrize("count", [2, 10, 11, 12, 21, 22])
def test_validation_predicts_every_token_once(count):
    windows = ValidationWindows(np.arange(count), 10)
    batch = windows.batch(0, np.arange(len(windows)))
    counted = batch.labels >= 0
    assert batch.labels[counted].tolist() == list(range(1, count))
    assert batch.inputs[counted].tolist() == list(range(count - 1))
    assert windows.batch(0, np.array([-1])).labels.eq(-100).all()


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
    assert data.tokenizer.decode(train + validation[1:]) == (tmp_path / "a.txt").read_text()
    assert validation[0] == train[-1]
    assert len(validation) == pytest.approx(0.25 * (len(train) + len(validation)), abs=2)


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
    batch = next(iter(data.val_dataloader()))
    packed = data.on_before_batch_transfer(batch, 0)
    assert data.train_tokens[:8].tolist() == [3, 2, 1, 2, 3, 2, 3, 2]
    ends = packed.inputs == 3
    assert ends.any()
    assert (packed.positions[ends] == 0).all()


def test_training_a_tokenizer_needs_a_size(tmp_path):
    with pytest.raises(UserError, match="vocab_size: found none, expected a number"):
        ready(tmp_path, tokenizer="train")


def test_the_constructor_touches_no_file():
    PretrainingDataModule(train="nowhere.jsonl", tokenizer="./nowhere")
