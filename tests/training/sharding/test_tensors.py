"""Parts of whole tensors, in a world of one process and, without one, by hand; what a run of several does is tested in
`test_fsdp`.
"""

import types

import pytest
import torch

from gpt_modules.backbone import GPT
from gpt_modules.training.muon import MuonAdamW
from gpt_modules.training.sharding import tensors
from gpt_modules.training.sharding.tensors import full, gather, local, shard_of, shard_state


class Part(torch.Tensor):
    """Stands for a shard of several processes: what `shard_of` asks a DTensor for, and what it makes of one."""

    @classmethod
    def __torch_function__(cls, function, kinds, args=(), kwargs=None):
        return super().__torch_function__(function, kinds, args, kwargs or {})


def like(shape, size, rank, dtype=torch.float32):
    part = torch.empty(shape, dtype=dtype).as_subclass(Part)
    part.device_mesh = types.SimpleNamespace(size=lambda: size, get_local_rank=lambda: rank)
    part.placements = "rows"
    return part


@pytest.fixture
def parts(monkeypatch):
    """DTensors are `Part`s; a new one is the local tensor with what it was made from."""

    def from_local(local, mesh, placements, *, run_check, shape, stride):
        assert (placements, run_check) == ("rows", False), "a check would be a message"
        return local, tuple(shape), tuple(stride)

    monkeypatch.setattr(Part, "from_local", staticmethod(from_local), raising=False)
    monkeypatch.setattr(tensors, "DTensor", Part)


@pytest.mark.parametrize(
    ("rows", "size", "expected"),
    [
        (6, 2, [[0, 1, 2], [3, 4, 5]]),
        (7, 2, [[0, 1, 2, 3], [4, 5, 6]]),
        (5, 4, [[0, 1], [2, 3], [4], []]),
        (1, 3, [[0], [], []]),
        (4, 1, [[0, 1, 2, 3]]),
    ],
)
def test_processes_hold_all_rows_once_in_order(parts, rows, size, expected):
    """As FSDP2 cuts: the first ones hold one more, the last ones may hold none."""
    whole = torch.arange(rows * 3).view(rows, 3)
    for rank, rows_held in enumerate(expected):
        part, shape, stride = shard_of(whole, like((rows, 3), size, rank, torch.float64))
        assert torch.equal(part, whole[rows_held].double())
        assert (shape, stride, part.shape) == ((rows, 3), (3, 1), (len(rows_held), 3))


def test_a_part_is_a_copy(parts):
    whole = torch.zeros(4, 2)
    part, *_ = shard_of(whole, like((4, 2), 2, 0))
    part.fill_(1.0)
    assert not whole.any()


def test_what_is_no_part_of_the_tensor_is_as_it_is(parts):
    whole, step = torch.arange(6), torch.tensor(3.0)
    assert shard_of(whole, whole) is whole
    assert shard_of(whole, None) is whole
    assert shard_of(step, like((6,), 2, 0)) is step, "another shape: Adam's step beside a weight"
    assert shard_of(0.9, like((6,), 2, 0)) == 0.9


@pytest.mark.parametrize("muon", [False, True])
def test_an_optimizers_state_is_laid_out_as_it_reads_it(micro, muon):
    """Where nothing lies in shards, the state itself: for AdamW and for the two parts of Muon."""
    model = GPT(micro.config(n_layer=1))
    matrices = [p for p in model.decoder.blocks.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if all(p is not other for other in matrices)]
    adamw = torch.optim.AdamW(rest if muon else model.parameters())
    optimizer = MuonAdamW(torch.optim.Muon(matrices), adamw) if muon else adamw
    model(torch.tensor([[1, 2, 3]])).square().mean().backward()
    optimizer.step()
    state = optimizer.state_dict()
    again = shard_state(optimizer, state)
    assert again.keys() == state.keys()
    optimizer.load_state_dict(again)
    for left, right in zip(flat(optimizer.state_dict()), flat(state), strict=True):
        assert torch.equal(torch.as_tensor(left), torch.as_tensor(right))


def flat(value):
    if isinstance(value, dict | list | tuple):
        return [leaf for item in (value.values() if isinstance(value, dict) else value) for leaf in flat(item)]
    return [value] if isinstance(value, torch.Tensor | int | float) else []


def test_gathering_changes_nothing_that_is_whole():
    weight = torch.ones(2)
    state = {"a": [weight, {"b": 1}], "c": None}
    for keep in (True, False):
        found = gather(state, keep)
        assert found == {"a": [weight, {"b": 1}], "c": None}
        assert found["a"][0] is weight
    assert local(weight) is weight


def test_a_number_of_one_process_is_whole():
    number = torch.tensor(2.0)
    assert full(number) is number
