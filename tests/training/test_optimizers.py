"""Schedules against values worked by hand; decay where the papers put it."""

import copy
import math

import pytest
import torch
from torch import nn

from gpt_modules.errors import UserError
from gpt_modules.training.optimizers import (
    OptimizerConfig,
    ScheduleConfig,
    build,
    configure,
    lr_factor,
    parameter_groups,
)


def between(progress, schedule, total):
    """The factor of a step so small that it begins where it ends."""
    return lr_factor(progress, progress, schedule, total)


@pytest.mark.parametrize(
    ("progress", "expected"), [(0, 0.0), (50, 0.5), (100, 1.0), (600, 0.55), (1100, 0.1), (5000, 0.1)]
)
def test_cosine_after_warmup(progress, expected):
    schedule = ScheduleConfig(shape="cosine", warmup=100, final=0.1)
    assert between(progress, schedule, 1100) == pytest.approx(expected)


def test_linear_is_half_way_down_and_constant_stays():
    assert between(500, ScheduleConfig(shape="linear", final=0.0), 1000) == pytest.approx(0.5)
    assert between(10**9, ScheduleConfig(shape="constant", warmup=10), math.inf) == 1.0


def test_gpt3_small_in_tokens():
    schedule = ScheduleConfig(shape="cosine", warmup=375e6, total=260e9, final=0.1, unit="tokens")
    assert between(187.5e6, schedule, 260e9) == pytest.approx(0.5)
    assert between(130e9, schedule, 260e9) == pytest.approx(0.55, abs=2e-3)
    assert between(290e9, schedule, 260e9) == pytest.approx(0.1)


def rates(optimizer_and_scheduler, steps, taken=None):
    optimizer, scheduler = optimizer_and_scheduler["optimizer"], optimizer_and_scheduler["lr_scheduler"]["scheduler"]
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if taken is not None:
            taken.append(1)
        scheduler.step()
    return found


def adamw():
    return build(parameter_groups([nn.Linear(2, 2)], 0.1), OptimizerConfig(lr=1.0))


def test_every_step_of_a_line_to_0_moves_the_weights():
    assert rates(configure(adamw(), ScheduleConfig(shape="linear", final=0.0), 5), 6) == pytest.approx(
        [1.0, 0.8, 0.6, 0.4, 0.2, 0.0]
    )
    assert rates(configure(adamw(), ScheduleConfig(shape="linear", warmup=2, final=0.0), 6), 7) == pytest.approx(
        [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    )


def test_a_warmup_from_a_tenth_of_the_peak():
    schedule = ScheduleConfig(shape="constant", warmup=10, warmup_start=0.1)
    assert rates(configure(adamw(), schedule, 12), 12) == pytest.approx([*(0.1 + 0.09 * i for i in range(10)), 1, 1])


def test_tokens_and_steps_give_the_same_rates():
    taken = []
    by_steps = configure(adamw(), ScheduleConfig(warmup=4, unit="steps"), 10)
    by_tokens = configure(
        adamw(),
        ScheduleConfig(warmup=4 * 512, unit="tokens"),
        10,
        (lambda: (512 * sum(taken), 512 * (1 + sum(taken))), 10 * 512),
    )
    assert rates(by_steps, 10) == pytest.approx(rates(by_tokens, 10, taken))
    assert rates(configure(adamw(), ScheduleConfig(warmup=4), 10), 4) == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_an_endless_run_needs_a_total():
    with pytest.raises(UserError, match=r"schedule\.total"):
        configure(adamw(), ScheduleConfig(shape="cosine"), math.inf)


def test_an_endless_run_has_no_fractions():
    """A warm-up over a tenth of it would stay at rate 0."""
    with pytest.raises(UserError, match=r"^schedule\.unit: found 'run', expected 'steps': the run has no end"):
        configure(adamw(), ScheduleConfig(shape="constant", warmup=0.1, unit="run"), math.inf)


def test_decay_spares_biases_and_gains_and_counts_shared_tensors_once():
    module = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    decayed, spared = parameter_groups([module, module[0]], 0.1)
    assert [p.ndim for p in decayed["params"]] == [2]
    assert decayed["weight_decay"] == 0.1
    assert sorted(p.ndim for p in spared["params"]) == [1, 1, 1]
    assert spared["weight_decay"] == 0.0


def test_frozen_parameters_are_left_out():
    module = nn.Linear(3, 3).requires_grad_(False)
    assert parameter_groups([module], 0.1) == []


def test_decay_is_decoupled_from_the_gradient():
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = build([{"params": [weight], "weight_decay": 0.5}], OptimizerConfig(lr=0.1))
    weight.grad = torch.zeros(2, 2)
    optimizer.step()
    assert torch.allclose(weight.detach(), torch.full((2, 2), 1 - 0.1 * 0.5))


def muon_case():
    torch.manual_seed(0)
    embedding, block = nn.Embedding(5, 4), nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    config = OptimizerConfig(lr=0.1, muon_lr=0.02)
    optimizer = build(parameter_groups([embedding, block], 0.1), config, hidden=[block])
    return embedding, block, optimizer


def one_step(embedding, block, optimizer):
    optimizer.zero_grad()
    block(embedding(torch.arange(5))).square().sum().backward()
    optimizer.step()


def test_muon_takes_the_blocks_matrices_and_adamw_the_rest():
    embedding, block, optimizer = muon_case()
    of_muon = [p for group in optimizer.parts["muon"].param_groups for p in group["params"]]
    of_adamw = [p for group in optimizer.parts["adamw"].param_groups for p in group["params"]]
    assert [p is block[0].weight for p in of_muon] == [True]
    assert {id(p) for p in of_adamw} == {id(p) for p in (embedding.weight, block[0].bias, *block[1].parameters())}
    before = [p.detach().clone() for p in (*embedding.parameters(), *block.parameters())]
    one_step(embedding, block, optimizer)
    assert all(
        not torch.equal(old, new)
        for old, new in zip(before, (*embedding.parameters(), *block.parameters()), strict=True)
    )


def test_a_schedule_reaches_both_and_a_restored_state_goes_on_exactly():
    embedding, block, optimizer = muon_case()
    configure(optimizer, ScheduleConfig(shape="constant", warmup=2), 10)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.05, 0.05])
    one_step(embedding, block, optimizer)
    twin_embedding, twin_block, twin = muon_case()
    twin_embedding.load_state_dict(embedding.state_dict())
    twin_block.load_state_dict(block.state_dict())
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for case in ((embedding, block, optimizer), (twin_embedding, twin_block, twin)):
        one_step(*case)
    assert torch.equal(embedding.weight, twin_embedding.weight)
    assert torch.equal(block[0].weight, twin_block[0].weight)
    twin.param_groups[0]["lr"] = 0.0
    assert twin.parts["muon"].param_groups[0]["lr"] == 0.0


def test_muon_without_blocks_is_a_users_mistake():
    with pytest.raises(UserError, match="muon_lr"):
        build(parameter_groups([nn.Linear(2, 2)], 0.1), OptimizerConfig(muon_lr=0.02))


def test_a_rate_of_zero_for_muon_leaves_all_to_adamw():
    """The command line cannot say `null` to a recipe's number."""
    block = nn.Linear(2, 2)
    optimizer = build(parameter_groups([block], 0.1), OptimizerConfig(lr=0.1, muon_lr=0.0), hidden=[block])
    assert type(optimizer) is torch.optim.AdamW


def test_plain_gradient_descent():
    layer = torch.nn.Linear(3, 2)
    before, optimizer = (
        layer.weight.detach().clone(),
        build(parameter_groups([layer], 0.0), OptimizerConfig(lr=0.5, weight_decay=0.0, sgd=True)),
    )
    for _ in range(2):  # no momentum: the same gradient, the same step
        layer.weight.grad, layer.bias.grad = torch.ones_like(layer.weight), torch.zeros_like(layer.bias)
        optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), before - 1.0)
    with pytest.raises(UserError, match="sgd together with muon_lr"):
        OptimizerConfig(sgd=True, muon_lr=0.01)
