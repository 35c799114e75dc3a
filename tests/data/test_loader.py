from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch

from gpt_modules.data.loader import BatchLoader, Examples, ResumableDataModule

LIGHTNING = ["ignore:.isinstance.treespec, LeafSpec.:FutureWarning"]  # its own, on newer torch


class Numbers(Examples):
    """Batches are (epoch, indices): what was asked for."""

    def __init__(self, count, lengths=None):
        self.count, self._lengths = count, lengths

    def __len__(self):
        return self.count

    def lengths(self, epoch):
        return self._lengths

    def batch(self, epoch, indices):
        return torch.tensor([[epoch, i] for i in indices.tolist()])


def draw(loader, count):
    """The next batches, over ends of epochs."""
    batches = []
    while len(batches) < count:
        for batch in loader:
            batches.append(batch.tolist())
            if len(batches) == count:
                break
    return batches


def indices(batches):
    return [i for batch in batches for _, i in batch]


def test_an_epoch_sees_everything_once_in_an_order_of_its_own():
    loader = BatchLoader(Numbers(20), 5, seed=1)
    epochs = [[b.tolist() for b in loader] for _ in range(2)]
    assert [sorted(indices(epoch)) for epoch in epochs] == [list(range(20))] * 2
    assert indices(epochs[0]) != indices(epochs[1]) != list(range(20))
    assert {e for batch in epochs[1] for e, _ in batch} == {1}


def test_batches_are_a_function_of_seed_epoch_index():
    loader, other = BatchLoader(Numbers(20), 4, seed=7), BatchLoader(Numbers(20), 4, seed=7)
    played = [[b.tolist() for b in loader] for _ in range(3)]
    assert other.batch_at(2, 3).tolist() == played[2][3]
    assert other.batch_at(0, 1).tolist() == played[0][1]
    assert BatchLoader(Numbers(20), 4, seed=8).batch_at(0, 1).tolist() != played[0][1]


@pytest.mark.parametrize("used", [0, 1, 3, 4, 5, 8, 11])
def test_restored_loader_goes_on_where_the_first_stopped(used):
    whole = draw(BatchLoader(Numbers(17), 4, seed=3), 16)
    first = BatchLoader(Numbers(17), 4, seed=3)
    assert draw(first, used) == whole[:used]
    second = BatchLoader(Numbers(17), 4, seed=3)
    early = iter(second)  # asked for before the state is known, as Lightning does
    second.restore(first.state())
    rest = [batch.tolist() for batch in early]
    assert rest + draw(second, 16 - used - len(rest)) == whole[used:]


def test_iterating_anew_begins_the_next_epoch():
    loader = BatchLoader(Numbers(8), 2)
    next(iter(loader))
    assert next(iter(loader))[0, 0] == 1


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("drop_last", [True, False])
def test_ranks_share_the_global_batch(world, drop_last):
    def loader(rank, of, size):
        return BatchLoader(Numbers(26), size, seed=5, drop_last=drop_last, rank=rank, world=of)

    alone = [batch.tolist() for batch in loader(0, 1, 2 * world)]
    ranks = [[batch.tolist() for batch in loader(rank, world, 2)] for rank in range(world)]
    assert {len(batches) for batches in ranks} == {len(alone)}
    for i, batch in enumerate(alone):
        assert sorted(row for rank in ranks for row in rank[i]) == sorted(batch)


@pytest.mark.parametrize("drop_last", [True, False])
def test_a_rank_may_have_nothing(drop_last):
    ranks = [BatchLoader(Numbers(1), 2, drop_last=drop_last, rank=rank, world=3) for rank in range(3)]
    found = [[len(batch) for batch in rank] for rank in ranks]
    assert found == ([[2]] * 3 if drop_last else [[1], [0], [0]])


@pytest.mark.parametrize("lengths", [None, np.random.default_rng(0).integers(1, 9, size=128)])
@pytest.mark.parametrize(("before", "after"), [((1, 8), (2, 8)), ((2, 8), (1, 8)), ((2, 4), (3, 4)), ((4, 2), (1, 3))])
def test_an_epoch_goes_on_with_another_global_batch_and_no_example_twice(lengths, before, after):
    def ranks(world, size, state=None):
        loaders = [BatchLoader(Numbers(128, lengths), size, seed=3, rank=rank, world=world) for rank in range(world)]
        for loader in loaders if state else ():
            loader.restore(state)
        return loaders

    first = ranks(*before)
    began = [row for loader in first for row in draw(loader, 3)]
    second = ranks(*after, first[0].state())
    iterators = [iter(loader) for loader in second]
    went_on = [next(iterator).tolist() for iterator in iterators]
    third = ranks(*before, second[0].state())
    assert [loader.goes_on for loader in third] == [True] * len(third)
    rest = [batch.tolist() for loader in third for batch in loader]
    seen = indices(began + went_on + rest)
    size = before[0] * before[1]
    assert len(seen) == len(set(seen)) == 128 - (128 - len(indices(began + went_on))) % size
    assert {epoch for batch in rest for epoch, _ in batch} == {0}
    assert len(third[0]) == 3 + 1 + len(rest) // before[0]
    whole = indices(batch.tolist() for loader in third for batch in loader)
    assert sorted(whole) == list(range(128))
    assert len(third[0]) == 128 // size
    assert draw(third[0], 1) == draw(_at_epoch(2, ranks(*before)[0]), 1)


def _at_epoch(epoch, loader):
    loader.epoch = epoch
    return loader


def test_state_survives_another_number_of_ranks():
    two = BatchLoader(Numbers(24), 2, rank=1, world=2)
    draw(two, 4)
    one = BatchLoader(Numbers(24), 4)
    one.restore(two.state())
    expected = BatchLoader(Numbers(24), 4).batch_at(0, 4)
    assert next(iter(one)).tolist() == expected.tolist()


def test_validation_keeps_every_example_and_its_order():
    loader = BatchLoader(Numbers(7), 3, shuffle=False, drop_last=False)
    for _ in range(2):
        batches = [batch.tolist() for batch in loader]
        assert indices(batches) == list(range(7))
        assert {e for batch in batches for e, _ in batch} == {0}
    assert len(loader) == len(batches) == 3


def test_fewer_examples_than_a_batch_are_repeated():
    (batch,) = BatchLoader(Numbers(3), 8)
    assert len(batch) == 8
    assert set(batch[:, 1].tolist()) == {0, 1, 2}


def test_alike_lengths_meet_and_nothing_is_lost():
    lengths = np.random.default_rng(0).integers(1, 500, size=1024)
    batches = [batch[:, 1].numpy() for batch in BatchLoader(Numbers(1024, lengths), 16)]
    cells = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert cells < 1.15 * lengths.sum()
    assert sorted(np.concatenate(batches)) == list(range(1024))
    order = [lengths[batch].max() for batch in batches]
    assert order != sorted(order)


def test_alike_lengths_keep_their_order():
    lengths = np.arange(100) % 2
    (batch,) = BatchLoader(Numbers(100, lengths), 100, shuffle=False)
    assert batch[:, 1].tolist() == [*range(0, 100, 2), *range(1, 100, 2)]
    plain, sorted_ = (BatchLoader(Numbers(1024, of), 16) for of in (None, np.full(1024, 7)))
    batches = [[frozenset(batch[:, 1].tolist()) for batch in loader] for loader in (plain, sorted_)]
    assert batches[0] != batches[1]
    assert set(batches[0]) == set(batches[1]), "the same batches in another order"


def test_examples_may_have_an_order_of_their_own():
    class Backwards(Numbers):
        def order(self, epoch):
            return np.arange(self.count)[::-1]

    assert indices(draw(BatchLoader(Backwards(6), 2), 3)) == [5, 4, 3, 2, 1, 0]
    assert indices(draw(BatchLoader(Backwards(6), 2, shuffle=False), 3)) == [0, 1, 2, 3, 4, 5]


def test_lengths_do_not_decide_who_is_left_out():
    lengths = np.arange(19)
    seen = [i for _ in range(1) for epoch in range(200) for i in _epoch(BatchLoader(Numbers(19, lengths), 4), epoch)]
    counts = np.bincount(seen, minlength=19)
    assert counts.min() > 140  # 16 of 19 places, 200 times: 168 expected


def _epoch(loader, epoch):
    return [i for index in range(len(loader)) for i in loader.batch_at(epoch, index)[:, 1].tolist()]


@pytest.mark.parametrize(("done", "expected"), [(0, (1, 0)), (12, None), (13, (2, 0)), (16, (2, 0)), (20, (2, 0))])
def test_where_another_global_batch_goes_on(done, expected):
    """Of 20 examples: at the beginning, with the last 8, or, where no 8 are left, in the next epoch."""
    loader = BatchLoader(Numbers(20), 8, seed=3)
    loader.restore({"epoch": 1, "examples": done, "of": 20, "size": 1, "batches": done})
    batch = next(iter(loader))
    if expected is None:
        order = indices(BatchLoader(Numbers(20), 1, seed=3).batch_at(1, i).tolist() for i in range(12, 20))
        assert sorted(batch[:, 1].tolist()) == sorted(order)
    else:
        assert batch.tolist() == BatchLoader(Numbers(20), 8, seed=3).batch_at(*expected).tolist()


def test_a_place_in_data_of_another_size_is_told(caplog):
    loader = BatchLoader(Numbers(20), 4)
    place = {"epoch": 1, "examples": 8, "size": 4, "batches": 2}
    loader.restore({**place, "of": 20})
    assert not caplog.records
    loader.restore({**place, "of": 24})
    (record,) = caplog.records
    assert record.getMessage() == "the data has 20 examples, the checkpoint's had 24: the order differs"
    assert next(iter(loader)).tolist() == BatchLoader(Numbers(20), 4).batch_at(1, 2).tolist()


def test_wrong_numbers_are_refused():
    assert len(BatchLoader(Numbers(3), 1)) == 3
    with pytest.raises(ValueError, match="found batch_size 0"):
        BatchLoader(Numbers(3), 0)
    with pytest.raises(ValueError, match="rank 2, world 2"):
        BatchLoader(Numbers(3), 1, rank=2, world=2)


class NumbersData(ResumableDataModule):
    def __init__(self, batch_size=4):
        super().__init__("gpt2")
        self.batch_size = batch_size

    def setup(self, stage):
        self.forget_loader()

    def train_dataloader(self):
        return self.training_loader(Numbers(23), self.batch_size, seed=2)

    def val_dataloader(self):
        return self.validation_loader(Numbers(5), 4)


def rank_of(rank, world):
    module = NumbersData()
    module.trainer = SimpleNamespace(distributed_sampler_kwargs={"rank": rank, "num_replicas": world})
    return module


def test_every_rank_has_its_share_of_each_loader():
    assert NumbersData().sharding() == (0, 1)
    assert rank_of(1, 3).sharding() == (1, 3)
    alone = BatchLoader(Numbers(23), 8, seed=2).batch_at(0, 0)
    for rank in range(2):
        assert torch.equal(rank_of(rank, 2).train_dataloader().batch_at(0, 0), alone[rank::2])
    held_out = [[batch.tolist() for batch in rank_of(rank, 2).val_dataloader()] for rank in range(2)]
    assert held_out == [[[[0, 0], [0, 2], [0, 4]]], [[[0, 1], [0, 3]]]]


def test_what_is_tested_and_predicted_is_the_validation_source():
    module = NumbersData()
    expected = [batch.tolist() for batch in module.val_dataloader()]
    for loader in (module.test_dataloader(), module.predict_dataloader()):
        assert [batch.tolist() for batch in loader] == expected


def test_a_place_is_kept_before_and_after_there_is_a_loader():
    place = {"loader": {"epoch": 1, "examples": 8, "of": 23, "size": 4, "batches": 2}}
    early, late = NumbersData(), NumbersData()
    assert early.state_dict() == {}
    early.load_state_dict(place)
    assert early.state_dict() == place
    loader = late.train_dataloader()
    late.load_state_dict(place)
    for own in (early.train_dataloader(), loader):
        assert next(iter(own)).tolist() == BatchLoader(Numbers(23), 4, seed=2).batch_at(1, 2).tolist()
    later = {"loader": {**place["loader"], "examples": 12, "batches": 3}}
    assert early.state_dict() == late.state_dict() == later
    early.load_state_dict({})
    assert early.state_dict() == late.state_dict()


def test_the_tokenizer_is_opened_once_and_when_it_is_asked_for():
    module = NumbersData()
    assert module.tokenizer.vocab_size == 50257
    assert module.tokenizer is module.tokenizer


class Recorder(L.LightningModule):
    """Notes its batches, and learns just enough to have a global step."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch.tolist())
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        steps = self.trainer.estimated_stepping_batches  # makes Lightning build the loader before it restores
        assert steps
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder, steps, checkpoint=None, batch_size=4, **kwargs):
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        num_sanity_val_steps=0,
        **kwargs,
    )
    module = Recorder()
    trainer.fit(
        module, datamodule=NumbersData(batch_size), ckpt_path=checkpoint, weights_only=True if checkpoint else None
    )
    trainer.save_checkpoint(folder / f"{steps}.ckpt")
    return module.seen


@pytest.mark.filterwarnings(*LIGHTNING)
@pytest.mark.parametrize(("stop", "limit"), [(3, 1.0), (5, 1.0), (7, 1.0), (2, 2), (3, 2), (2, 0.5)])
def test_a_resumed_trainer_sees_the_same_batches(tmp_path, stop, limit):
    whole = fit(tmp_path, 12, limit_train_batches=limit)
    first = fit(tmp_path, stop, limit_train_batches=limit)
    second = fit(tmp_path, 12, tmp_path / f"{stop}.ckpt", limit_train_batches=limit)
    assert first + second == whole


@pytest.mark.filterwarnings(*LIGHTNING)
def test_reloading_the_loader_does_not_start_over(tmp_path):
    assert fit(tmp_path, 12, reload_dataloaders_every_n_epochs=1) == fit(tmp_path, 12)


@pytest.mark.filterwarnings(*LIGHTNING)
@pytest.mark.parametrize(("batch_size", "left"), [(2, 7), (8, 1), (3, 5), (16, 0)])
def test_a_trainer_that_resumes_with_another_batch_size_ends_the_epoch_and_has_whole_ones_after(
    tmp_path, batch_size, left
):
    """Of 23 examples, two batches of 4 are seen, and then `left` batches of what is left."""
    first = fit(tmp_path, 2)
    an_epoch = 23 // batch_size
    rest = fit(tmp_path, 2 + left + 2 * an_epoch, tmp_path / "2.ckpt", batch_size=batch_size)
    epochs = [rest[:left], rest[left : left + an_epoch], rest[left + an_epoch :]]
    assert [{epoch for batch in batches for epoch, _ in batch} for batches in epochs[1:]] == [{1}, {2}]
    for batches in (first + epochs[0], *epochs[1:]):
        assert len(set(indices(batches))) == len(indices(batches)) == sum(map(len, batches))
    assert [len(batches) for batches in epochs] == [left, an_epoch, an_epoch]
