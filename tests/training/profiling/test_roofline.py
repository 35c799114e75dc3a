"""What operations must do, counted by hand."""

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F

from gpt_modules.training.profiling import roofline
from gpt_modules.training.profiling.roofline import Roofline, Work


@pytest.fixture
def counting():
    return Roofline(lambda dtype: 100.0, 1000.0, lambda: "phase")


def work(counting):
    return counting.work.get("phase", Work())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_product_of_matrices(counting, mode):
    left, right = torch.ones(2, 3, 4), torch.ones(5, 4)
    with mode(), counting:
        F.linear(left, right)
    assert work(counting).flops == 2 * (2 * 3) * 4 * 5
    assert work(counting).moved == 4 * (2 * 3 * 4 + 5 * 4 + 2 * 3 * 5)
    assert work(counting).arithmetic == pytest.approx(240 / 100)
    assert work(counting).memory == 0, "its arithmetic takes longer"


def test_backwards_twice_as_much(counting):
    left, right = torch.ones(6, 4, requires_grad=True), torch.ones(4, 5, requires_grad=True)
    out = left @ right
    with counting:
        out.backward(torch.ones(6, 5))
    assert work(counting).flops == 2 * 2 * 6 * 4 * 5


def test_attention_by_its_products(counting):
    queries, keys, values = (torch.randn(2, 3, length, 8, requires_grad=True) for length in (4, 6, 6))
    with counting:
        out = F.scaled_dot_product_attention(queries, keys, values)
    one = 2 * 2 * 3 * 4 * 6 * 8
    assert work(counting).flops == 2 * one
    with counting:
        out.sum().backward()
    assert work(counting).flops == (2 + 5) * one


def test_what_is_only_seen_otherwise_moves_nothing(counting):
    tensor = torch.ones(4, 6)
    with counting:
        tensor.view(6, 4).t()[2:].expand(3, 2, 6)
    assert work(counting).moved == 0


def test_a_sum_moves_three_tensors_and_a_lookup_what_it_finds(counting):
    table, ids = torch.ones(1000, 8), torch.tensor([1, 2, 3])
    with counting:
        ids + ids
    assert work(counting).moved == 3 * 3 * 8
    before = work(counting).moved
    with counting:
        F.embedding(ids, table)
        table.index_copy_(0, ids, torch.empty(3, 8))
    made = 3 * 8 * 4  # torch.empty itself
    assert work(counting).moved - before == 2 * 3 * 8 * 4 + made + 2 * 3 * 8 * 4
    assert work(counting).memory == pytest.approx(work(counting).moved / 1000)


def test_a_collective_takes_what_it_takes_who_comes_last(counting, monkeypatch):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with counting:
            dist.all_reduce(torch.ones(4), async_op=True).wait()
            dist.broadcast(torch.ones(4), src=0)
    finally:
        dist.destroy_process_group()
    assert [phase for phase, _ in counting.calls] == ["phase", "phase"]
    assert all(seconds > 0 for _, seconds in counting.calls)
    counting.calls = [("phase", 3.0), ("phase", 1.0)]
    monkeypatch.setattr(roofline, "as_one", lambda own: [own(), [0.5, 2.0]])
    assert counting.close()["phase"].collectives == 0.5 + 1.0
