"""TensorFlow's Adam, written down as its paper has it, is the oracle."""

import copy
import math

import pytest
import torch

from gpt_modules.training.optimizers import OptimizerConfig, build, keep_settings
from gpt_modules.training.tf_adam import EpsilonHatAdamW

EPS, BETAS, LR = 1e-3, (0.9, 0.999), 0.01


def gradient(step):
    """Small numbers, beside which epsilon counts."""
    return 1e-3 * torch.randn(5, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def by_hand(start, steps, decay=0.0):
    """Kingma and Ba 2015, algorithm 1 with the order of computation of the end of section 2; decoupled decay."""
    theta, m, v = start.double(), 0.0, 0.0
    for t in range(1, steps + 1):
        g = gradient(t)
        m, v = BETAS[0] * m + (1 - BETAS[0]) * g, BETAS[1] * v + (1 - BETAS[1]) * g * g
        rate = LR * math.sqrt(1 - BETAS[1] ** t) / (1 - BETAS[0] ** t)
        theta = theta * (1 - LR * decay) - rate * m / (v.sqrt() + EPS)
    return theta


def learnt(kind, start, steps, first=1, state=None, fused=True, closure=False):
    parameter = torch.nn.Parameter(start.clone())
    optimizer = kind([parameter], lr=LR, betas=BETAS, eps=EPS, weight_decay=0.1, fused=fused)
    keep_settings(optimizer)
    if state is not None:
        optimizer.load_state_dict(copy.deepcopy(state))
    for step in range(first, steps + 1):

        def backward(step=step):
            parameter.grad = gradient(step).to(start.dtype)
            return step

        if closure:
            assert optimizer.step(backward) == step
        else:
            backward()
            optimizer.step()
    return parameter.detach(), optimizer


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_it_is_tensorflows(fused, steps):
    start = torch.linspace(-1, 1, 5)
    found, _ = learnt(EpsilonHatAdamW, start, steps, fused=fused)
    torch.testing.assert_close(found.double() - start, by_hand(start, steps, 0.1) - start, rtol=1e-4, atol=1e-7)
    torchs, _ = learnt(torch.optim.AdamW, start, steps)
    assert (torchs - start).norm() > 1.2 * (found - start).norm(), "torch's steps are longer at first"


def test_late_it_is_adamw():
    start = torch.linspace(-1, 1, 5)
    hat, plain = (learnt(kind, start, 1)[1] for kind in (EpsilonHatAdamW, torch.optim.AdamW))
    state = plain.state_dict()
    state["state"][0]["step"] = torch.tensor(1e6)
    ends = [learnt(kind, start, 3, first=2, state=state)[0] for kind in (EpsilonHatAdamW, torch.optim.AdamW)]
    assert torch.equal(*ends)
    assert hat.state_dict()["state"].keys() == state["state"].keys(), "one goes on from the other's state"


@pytest.mark.parametrize("closure", [True, False])
def test_it_goes_on_bit_for_bit(closure):
    start = torch.linspace(-1, 1, 5)
    straight, _ = learnt(EpsilonHatAdamW, start, 6, closure=closure)
    half, optimizer = learnt(EpsilonHatAdamW, start, 3, closure=closure)
    resumed, _ = learnt(EpsilonHatAdamW, half, 6, first=4, state=optimizer.state_dict(), closure=closure)
    assert torch.equal(straight, resumed)


def test_a_group_that_waits_begins_at_its_own_first_step():
    """As a policy does while its critic warms up."""
    start = torch.linspace(-1, 1, 5)
    early, late = (torch.nn.Parameter(start.clone()) for _ in range(2))
    groups = [{"params": [early]}, {"params": [late]}]
    optimizer = EpsilonHatAdamW(groups, lr=LR, betas=BETAS, eps=EPS, weight_decay=0.1, fused=True)
    for step in range(1, 6):
        early.grad = gradient(step).float()
        late.grad = gradient(step - 3).float() if step > 3 else None
        optimizer.step()
    assert torch.equal(late.detach(), learnt(EpsilonHatAdamW, start, 2)[0])
    assert torch.equal(early.detach(), learnt(EpsilonHatAdamW, start, 5)[0])


def test_a_recipe_asks_for_it():
    group = [{"params": [torch.nn.Parameter(torch.zeros(2))], "weight_decay": 0.0}]
    asked = build(group, OptimizerConfig(eps_hat=True))
    assert isinstance(asked, EpsilonHatAdamW)
    assert type(build(group, OptimizerConfig())) is torch.optim.AdamW
    assert asked.param_groups[0]["fused"]
    assert OptimizerConfig(sgd=True).idle() == dict.fromkeys(("betas", "eps", "eps_hat"), "sgd has no moments")
