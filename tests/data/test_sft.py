import json
from itertools import chain

import numpy as np
import pytest

from gpt_modules.data.batches import PackedBatch, TokenBatch
from gpt_modules.data.sft import SFTDataModule
from gpt_modules.data.text.tokenizers import Tokenizer

ROWS = [{"prompt": "q" * n, "response": " a" * n} for n in range(1, 26)]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.gpt2()


@pytest.fixture
def data(tmp_path):
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    again = tmp_path / "b.jsonl"
    again.write_text(source.read_text() + "\n")

    def make(**kwargs):
        module = SFTDataModule(str(source), str(again), cache_dir=str(tmp_path), context=40, batch_size=2, **kwargs)
        module.prepare_data()
        module.setup("fit")
        return module

    return make


def texts_of(tokenizer, batch):
    """What every example of packed rows reads and is to learn, put together again from the segments."""
    found = []
    for inputs, labels, segments in zip(batch.inputs, batch.labels, batch.segments, strict=True):
        for number in range(1, int(segments.max()) + 1):
            own = segments == number
            learned = own & (labels >= 0)
            prompt = inputs[own][: int((labels[own] < 0).sum()) + 1]
            response = labels[learned].tolist()
            assert response[-1] == tokenizer.eos_id
            found.append((tokenizer.decode(prompt.tolist()), tokenizer.decode(response)))
    return found


def test_packed_rows_hold_every_example_once(data, tokenizer):
    batches = list(data().val_dataloader())
    assert all(isinstance(batch, PackedBatch) for batch in batches)
    found = [pair for batch in batches for pair in texts_of(tokenizer, batch)]
    assert sorted(found) == sorted((row["prompt"], row["response"]) for row in ROWS)
    filled = sum(int((batch.segments > 0).sum()) for batch in batches)
    assert filled > 0.85 * sum(batch.inputs.numel() for batch in batches)


def test_unpacked_rows_learn_the_same_tokens(data):
    packed = [b.labels[b.labels >= 0].tolist() for b in data().val_dataloader()]
    single = [b.labels[b.labels >= 0].tolist() for b in data(packing=False).val_dataloader()]
    assert isinstance(next(iter(data(packing=False).train_dataloader())), TokenBatch)
    assert sorted(chain(*packed)) == sorted(chain(*single))


def test_positions_start_anew(data):
    for batch in data().train_dataloader():
        positions, segments = batch.positions.numpy(), batch.segments.numpy()
        starts = np.diff(segments, axis=1, prepend=0) > 0
        assert (positions[starts] == 0).all()
        inside = (segments > 0) & ~starts
        assert (np.diff(positions, axis=1, prepend=0)[inside] == 1).all()
        assert batch.labels[batch.segments == 0].eq(-100).all()


def test_reviews(tmp_path):
    data = SFTDataModule(cache_dir=str(tmp_path))
    data.setup("fit")
    assert sum(len(row) for row in data.train_examples.rows) == 10392
    assert next(iter(data.train_dataloader())).inputs.shape == (16, 128)
