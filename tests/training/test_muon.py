"""Muon beside AdamW: each as if it were alone, behind one step."""

import copy

import torch

from gpt_modules.training.muon import MuonAdamW


def case():
    torch.manual_seed(0)
    matrix, rest = torch.nn.Parameter(torch.randn(4, 3)), torch.nn.Parameter(torch.randn(4))
    return matrix, rest, torch.optim.Muon([matrix], lr=0.02), torch.optim.AdamW([rest], lr=0.1)


def loss(matrix, rest, x):
    return ((matrix @ x) * rest).sum().square()


def step(parameters, optimizers, x):
    loss(*parameters, x).backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def test_together_they_do_what_each_does_alone():
    *alone, muon, adamw = case()
    *joined, first, second = case()
    optimizer, inputs = MuonAdamW(first, second), torch.randn(3, 3)
    for x in inputs:
        step(alone, [muon, adamw], x)
        step(joined, [optimizer], x)
    assert all(torch.equal(*pair) for pair in zip(alone, joined, strict=True))


def test_a_closure_runs_once_with_gradients_and_gives_its_loss():
    matrix, rest, muon, adamw = case()
    optimizer, seen = MuonAdamW(muon, adamw), []

    def closure():
        seen.append(torch.is_grad_enabled())
        value = loss(matrix, rest, torch.ones(3))
        value.backward()
        return value

    before = loss(matrix, rest, torch.ones(3)).item()
    with torch.no_grad():
        assert optimizer.step(closure).item() == before
    assert seen == [True]
    assert optimizer.step() is None


def test_a_restored_pair_goes_on_exactly_and_shares_its_groups():
    *parameters, muon, adamw = case()
    optimizer, inputs = MuonAdamW(muon, adamw), torch.randn(4, 3)
    for x in inputs[:2]:
        step(parameters, [optimizer], x)
    twins = [torch.nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    twin = MuonAdamW(torch.optim.Muon([twins[0]]), torch.optim.AdamW([twins[1]]))
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for x in inputs[2:]:
        step(parameters, [optimizer], x)
        step(twins, [twin], x)
    assert all(torch.equal(*pair) for pair in zip(parameters, twins, strict=True))
    for group in twin.param_groups:
        group["lr"] = 0.0
    assert [part.param_groups[0]["lr"] for part in twin.parts.values()] == [0.0, 0.0]
