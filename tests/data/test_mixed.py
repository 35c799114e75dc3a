"""Pretraining text beside other data: what a batch holds follows from the place alone."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import write_rows

from gpt_modules.data import MixedSource, PPODataModule, PretrainingDataModule, PretrainingText, SFTDataModule
from gpt_modules.data.batches import IGNORE, MixedBatch, PackedBatch, TokenBatch
from gpt_modules.data.mixed import told_below
from gpt_modules.errors import UserError


@pytest.fixture
def text(micro):
    return PretrainingText(train=str(micro.pretraining), context=16)


@pytest.fixture
def sft(micro, text, tmp_path):
    """sft(rank, world, **settings): demonstrations with text beside them, of one process of several."""

    def build(rank=0, world=1, **settings):
        given = {"tokenizer": str(micro.gpt), "context": 32, "cache_dir": str(tmp_path / "cache"), "pretraining": text}
        given |= {"train": str(micro.sft), "batch_size": 4, "pretraining_fraction": 0.3}
        data = SFTDataModule(**{**given, **settings})
        data.trainer = SimpleNamespace(distributed_sampler_kwargs={"rank": rank, "num_replicas": world})
        data.setup("fit")
        return data

    return build


def epochs(data, count=3):
    loader = data.train_dataloader()
    return [list(loader) for _ in range(count)]


def rows(*batches):
    """Windows that count, of batches that there are."""
    there = [batch for batch in batches if batch is not None]
    return [tuple(row.tolist()) for batch in there for row in batch.inputs[(batch.labels != IGNORE).any(1)]]


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("fraction", [0.02, 0.3, 0.5, 0.9])
def test_every_stretch_has_its_share_and_the_demonstrations_are_those_without(sft, packing, fraction):
    plain = epochs(sft(packing=packing, pretraining=None, pretraining_fraction=0.1))
    mixed = epochs(sft(packing=packing, pretraining_fraction=fraction))
    assert [len(epoch) for epoch in plain] == [len(epoch) for epoch in mixed]
    for epoch, own in zip(plain, mixed, strict=True):
        windows = 0
        for number, (alone, batch) in enumerate(zip(epoch, own, strict=True), start=1):
            assert all(torch.equal(*fields) for fields in zip(alone, batch.demonstrations, strict=True))
            windows += len(rows(batch.pretraining))
            demonstrations = number * 4
            assert abs(windows - fraction * (windows + demonstrations)) < 1


def test_the_windows_are_all_once_before_any_twice(sft, micro, tmp_path):
    data = sft(pretraining_fraction=0.9)
    count = len(data.pretraining.data.training_windows())
    drawn = [data.pretraining.windows(n * 7, (n + 1) * 7) for n in range(2 * count // 7 + 1)]
    starts = torch.cat([batch.inputs for batch in drawn])
    offsets = [data.pretraining.data.training_windows().offset(epoch) for epoch in range(2)]
    tokens = torch.tensor(data.pretraining.data.train_tokens[:].tolist())
    for epoch, offset in enumerate(offsets):
        own = starts[epoch * count : (epoch + 1) * count]
        expected = tokens[offset : offset + 16 * count].view(count, 16)
        assert sorted(map(tuple, own.tolist())) == sorted(map(tuple, expected.tolist()))
    assert not torch.equal(starts[:count], starts[count : 2 * count])


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_out_what_one_reads(sft, world):
    """All read windows or none does: one alone would wait for the shards of a model that the others do not call."""
    whole = epochs(sft(batch_size=4))
    shares = [epochs(sft(rank, world, batch_size=4 // world)) for rank in range(world)]
    for number, epoch in enumerate(whole):
        for index, batch in enumerate(epoch):
            own = [share[number][index].pretraining for share in shares]
            assert sorted(rows(*own)) == sorted(rows(batch.pretraining))
            assert [share is None for share in own] == [batch.pretraining is None] * world


def test_a_restored_place_goes_on_with_the_windows_that_follow(sft, tmp_path):
    straight = [batch for epoch in epochs(sft()) for batch in epoch]
    first = sft()
    loader = iter(first.train_dataloader())
    for _ in range(5):
        next(loader)
    torch.save(first.state_dict(), tmp_path / "state")
    for rank, world in ((0, 1), (0, 2), (1, 2)):
        second = sft(rank, world, batch_size=4 // world)
        second.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
        rest = [batch for epoch in epochs(second, 2) for batch in epoch]
        for later, batch in zip(straight[5:], rest, strict=False):
            assert set(rows(batch.pretraining)) <= set(rows(later.pretraining))
            assert world > 1 or rows(batch.pretraining) == rows(later.pretraining)


def test_another_global_batch_inside_an_epoch_repeats_no_window(sft):
    first = sft(batch_size=4, pretraining_fraction=0.5)
    loader = iter(first.train_dataloader())
    seen = [next(loader) for _ in range(3)]
    second = sft(batch_size=2, pretraining_fraction=0.5)
    second.load_state_dict(first.state_dict())
    rest = list(second.train_dataloader())
    drawn = rows(*(batch.pretraining for batch in (*seen, *rest)))
    demonstrations = 12 + 2 * len(rest)
    assert drawn == rows(first.pretraining.windows(0, demonstrations))


def test_the_seed_orders_the_windows(sft):
    one, other = (rows(sft(seed=seed).pretraining.windows(0, 50)) for seed in (0, 1))
    assert one != other


def test_a_set_smaller_than_a_global_batch_draws_on(sft, micro, tmp_path):
    """Its epochs, which repeat it to fill a batch, do not repeat the windows."""
    few = write_rows(tmp_path / "few.jsonl", [{"prompt": "the film", "response": f" is {i}"} for i in range(3)])
    data = sft(train=str(few), validation=str(micro.sft), packing=False, pretraining_fraction=0.5)
    drawn = [rows(batch.pretraining) for epoch in epochs(data) for batch in epoch]
    assert [row for batch in drawn for row in batch] == rows(data.pretraining.windows(0, 12))


def test_a_fraction_of_nothing_watches_only(sft):
    data = sft(pretraining_fraction=0.0)
    assert isinstance(next(iter(data.train_dataloader())), PackedBatch)
    assert len(data.val_dataloader()) == 2


@pytest.mark.parametrize("word", ["sft", "ppo"])
def test_validation_has_the_held_out_text_of_pretraining(sft, micro, text, tmp_path, word):
    cache = str(tmp_path / "cache")
    ppo = PPODataModule(str(micro.prompts), tokenizer=str(micro.gpt), episodes=8, cache_dir=cache, pretraining=text)
    data = {"sft": sft(), "ppo": ppo}[word]
    data.setup("fit")
    own, held_out = data.val_dataloader()
    alone = PretrainingDataModule(str(micro.pretraining), tokenizer=str(micro.gpt), context=16, cache_dir=cache)
    alone.setup("fit")
    assert rows(*held_out) == rows(*alone.val_dataloader())
    predicted = data.predict_dataloader()
    assert len(predicted) == len(own)
    assert len(predicted.examples) == len(own.examples)


def test_the_processes_share_the_held_out_text(sft):
    _, whole = sft().val_dataloader()
    shares = [sft(rank, 2).val_dataloader()[1] for rank in range(2)]
    found = [row for share in shares for batch in share for row in rows(batch) if bool((batch.labels >= 0).any())]
    assert sorted(found) == sorted(rows(*whole))


def test_documents_are_isolated_where_asked(sft, micro):
    text = PretrainingText(train=str(micro.pretraining), context=16, isolate_documents=True)
    data = sft(pretraining=text)
    for batch in (data.pretraining.windows(0, 9), next(iter(data.val_dataloader()[1]))):
        assert isinstance(batch, PackedBatch)
        opens = batch.inputs == data.tokenizer.eos_id
        assert opens.any()
        assert (batch.positions[opens] == 0).all()


def test_a_mixture_keeps_its_shares(sft, micro, tmp_path):
    digits = write_rows(tmp_path / "digits.jsonl", [{"text": " ".join(f"{i:030}")} for i in range(150)])
    parts = [MixedSource(str(micro.pretraining), 3.0), MixedSource(str(digits), 1.0)]
    data = sft(pretraining=PretrainingText(mixture=parts, context=16))
    digit = set(micro.tokenizer.encode("0 1 2 3 4 5 6 7 8 9 0"))
    drawn = [set(row) <= digit | {micro.tokenizer.eos_id} for row in rows(data.pretraining.windows(0, 200))]
    assert sum(drawn) == pytest.approx(50, abs=3)


def test_windows_are_of_the_demonstrations_length_unless_told(sft, micro):
    assert sft(pretraining=PretrainingText(train=str(micro.pretraining))).pretraining.context == 32
    assert sft().pretraining.context == 16
    ppo = PPODataModule(pretraining=PretrainingText())
    assert (ppo.pretraining.context, ppo.pretraining.batch_size) == (128, 16)


def test_the_text_is_known_by_its_content(sft, micro, tmp_path):
    source = tmp_path / "text.jsonl"
    source.write_bytes(micro.pretraining.read_bytes())
    before = sft(pretraining=PretrainingText(train=str(source), context=16)).content
    assert "pretraining.validation" not in before, "it is a part of the other"
    source.write_text(source.read_text() + json.dumps({"text": "one more"}) + "\n")
    after = sft(pretraining=PretrainingText(train=str(source), context=16)).content
    assert {name for name in before if before[name] != after[name]} == {"pretraining.train"}


@pytest.mark.parametrize("value", [0, -1, 10**18])
@pytest.mark.parametrize("name", ["context", "batch_size"])
@pytest.mark.parametrize("kind", [SFTDataModule, PPODataModule])
def test_a_number_of_the_text_is_refused_by_its_place(kind, name, value):
    with pytest.raises(UserError, match=rf"^pretraining\.{name}: found {value}, expected "):
        kind(pretraining=PretrainingText(**{name: value}))


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"pretraining_fraction": 0.2}, r"pretraining_fraction: found 0.2 beside no pretraining text, where it has no"),
        ({"pretraining": PretrainingText(), "pretraining_fraction": 1.0}, "pretraining_fraction: found 1.0, expected"),
        ({"pretraining": PretrainingText(), "pretraining_fraction": math.nan}, "pretraining_fraction: found nan, exp"),
        ({"pretraining": PretrainingText(validation_fraction=0.2)}, r"pretraining\.validation_fraction: found 0.2 bes"),
        ({"pretraining": PretrainingText(mixture=[])}, r"pretraining\.mixture: found no source, expected at least one"),
        ({"pretraining": PretrainingText(mixture=[MixedSource("a", 0)])}, r"pretraining\.mixture\.0\.weight: found"),
        ({"pretraining": PretrainingText(), "tokenizer": "train"}, "tokenizer: found 'train', expected that of the m"),
    ],
)
def test_what_has_no_meaning_is_refused_before_any_work(settings, line):
    with pytest.raises(UserError, match=f"^{line}"):
        SFTDataModule(**settings)


def test_a_text_shorter_than_a_window_is_told_by_its_place(sft, micro):
    with pytest.raises(UserError, match=r"^pretraining\.context: found 5000, expected less than the .* training text$"):
        sft(pretraining=PretrainingText(train=str(micro.pretraining), context=5000))


def test_what_is_told_of_a_file_stays():
    with pytest.raises(UserError, match=r"^trainer\.txt: found nothing$"), told_below("pretraining"):
        raise UserError("trainer.txt: found nothing")


def test_batches_without_a_window_say_so(sft):
    batches = [batch for epoch in epochs(sft(pretraining_fraction=0.1), 1) for batch in epoch]
    assert all(isinstance(batch, MixedBatch) for batch in batches)
    assert {type(batch.pretraining) for batch in batches} == {type(None), TokenBatch}
