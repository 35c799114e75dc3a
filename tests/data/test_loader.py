import numpy as np
import pytest
import torch

from gpt_modules.data.corpus.windows import TrainingWindows
from gpt_modules.data.loader import BatchLoader, Examples, Stream


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
    assert BatchLoader(Numbers(20), 4, seed=0).batch_at(0, 1).equal(BatchLoader(Numbers(20), 4).batch_at(0, 1))


@pytest.mark.parametrize("used", [0, 1, 3, 4, 5, 8, 11])
def test_restored_loader_goes_on_where_the_first_stopped(used):
    whole = draw(BatchLoader(Numbers(17), 4, seed=3), 16)
    first = BatchLoader(Numbers(17), 4, seed=3)
    assert draw(first, used) == whole[:used]
    second = BatchLoader(Numbers(17), 4, seed=3)
    early = iter(second)  # asked for before the state is known, as Lightning does
    second.restore(first.state())
    assert not second.goes_on, "the same global batch"
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
    batches = len(third[0])
    rest = [batch.tolist() for loader in third for batch in loader]
    seen = indices(began + went_on + rest)
    size = before[0] * before[1]
    assert len(seen) == len(set(seen)) == 128 - (128 - len(indices(began + went_on))) % size
    assert {epoch for batch in rest for epoch, _ in batch} == {0}
    assert batches == 3 + 1 + len(rest) // before[0]
    assert len(third[0]) == third[0].whole, "nothing is left of it"
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


def test_a_pool_is_sorted_as_python_sorts_it():
    lengths = np.random.default_rng(0).integers(1, 4, size=1024)
    order, expected = indices(batch.tolist() for batch in BatchLoader(Numbers(1024), 16)), []
    for start in range(0, 1024, 16 * 16):
        pool = sorted(order[start : start + 16 * 16], key=lengths.__getitem__)
        expected += [pool[i : i + 16] for i in range(0, len(pool), 16)]
    found = [batch[:, 1].tolist() for batch in BatchLoader(Numbers(1024, lengths), 16)]
    assert sorted(found) == sorted(expected)


def test_batches_are_pinned_where_there_is_a_device(monkeypatch):
    plain = BatchLoader(Numbers(4), 2).batch_at(1, 0)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: -tensor)
    assert BatchLoader(Numbers(4), 2).batch_at(1, 0).tolist() == (-plain).tolist()


def test_lightning_is_told_that_there_is_a_state_and_keeps_none():
    loader = BatchLoader(Numbers(4), 2)
    loader.load_state_dict({"epoch": 5})
    assert loader.state_dict() == {}
    assert next(iter(loader))[0, 0] == 0


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


@pytest.mark.parametrize(
    ("done", "expected"), [(0, (1, 0)), (1, None), (12, None), (13, (2, 0)), (16, (2, 0)), (20, (2, 0))]
)
def test_where_another_global_batch_goes_on(done, expected):
    """Of 20 examples: at the beginning, with the last 8, or, where no 8 are left, in the next epoch."""
    loader = BatchLoader(Numbers(20), 8, seed=3)
    loader.restore({"epoch": 1, "examples": done, "of": 20, "size": 1, "batches": done})
    batch = next(iter(loader))
    if expected is None:
        order = indices(BatchLoader(Numbers(20), 1, seed=3).batch_at(1, i).tolist() for i in range(done, done + 8))
        assert sorted(batch[:, 1].tolist()) == sorted(order)
    else:
        assert batch.tolist() == BatchLoader(Numbers(20), 8, seed=3).batch_at(*expected).tolist()


def test_an_epoch_of_which_nothing_is_used_is_that_of_its_own_global_batch():
    """Put in order by its own batches, too."""
    lengths = np.random.default_rng(0).integers(1, 9, size=20)
    loader, own = (BatchLoader(Numbers(20, lengths), 8, seed=3) for _ in range(2))
    loader.restore({"epoch": 1, "examples": 0, "of": 20, "size": 3, "batches": 0})
    assert [batch.tolist() for batch in loader] == [own.batch_at(1, index).tolist() for index in range(2)]


def test_an_epoch_that_was_limited_is_over_where_the_limit_is():
    loader = BatchLoader(Numbers(20), 4)
    loader.limit = 2
    place = {"epoch": 1, "of": 20, "size": 4}
    for used, expected in ((1, (1, 1)), (2, (2, 0))):
        loader.restore({**place, "examples": 4 * used, "batches": used})
        assert next(iter(loader)).tolist() == BatchLoader(Numbers(20), 4).batch_at(*expected).tolist()


@pytest.mark.parametrize("limit", [3, 0.2])
def test_where_a_limit_has_ended_an_epoch_the_next_one_has_its_own_length(limit):
    """Of 100 in batches of one, four are used: batches of ten would make 4 + 9, a limit leaves none of these."""
    loader = BatchLoader(Numbers(100), 10)
    loader.limit = limit
    loader.restore({"epoch": 1, "of": 100, "size": 1, "examples": 4, "batches": 4})
    assert (loader.over, len(loader)) == (True, 10)
    assert next(iter(loader))[0, 0] == 2
    assert (loader.over, len(loader)) == (False, 10)


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


def test_a_stream_has_everything_once_before_anything_twice():
    windows = TrainingWindows(np.arange(115), 10, seed=0)
    whole = Stream(windows, seed=3).batch(np.arange(30))
    starts = [(row - windows.offset(n // 10)).item() // 10 for n, row in enumerate(whole.inputs[:, 0])]
    passes = [starts[:10], starts[10:20], starts[20:]]
    assert [sorted(one) for one in passes] == [list(range(10))] * 3
    assert passes[0] != passes[1] != passes[2]
    assert Stream(windows, seed=4).batch(np.arange(30)).inputs.tolist() != whole.inputs.tolist()


@pytest.mark.parametrize("places", [[0], [9, 10], [3, 8, 19, 20, 25], [29]])
def test_what_stands_at_a_place_of_a_stream_is_there_whoever_asks(places):
    stream = Stream(TrainingWindows(np.arange(115), 10, seed=0), seed=3)
    whole, some = stream.batch(np.arange(30)), stream.batch(np.array(places))
    assert torch.equal(some.inputs, whole.inputs[places])
    assert torch.equal(some.labels, whole.labels[places])


@pytest.mark.parametrize("index", [0, 1, 5])
def test_examples_before_a_batch_are_counted_through_a_change_of_its_size(index):
    first = BatchLoader(Numbers(40), 4)
    draw(first, 2)
    second = BatchLoader(Numbers(40), 3)
    second.restore(first.state())
    assert first.examples_before(0, index) == 4 * index
    assert second.examples_before(0, 2 + index) == 8 + 3 * index
    assert second.examples_before(1, index) == 3 * index
