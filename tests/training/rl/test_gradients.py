"""Norms, clipping and dropping of gradients by the group that they are of."""

import pytest
import torch
from torch import nn

from gpt_modules.training.rl.gradients import clip_gradients, drop_gradients, grad_norm, named_groups, touch


def parameters(*gradients):
    made = [nn.Parameter(torch.ones(len(gradient))) for gradient in gradients]
    for parameter, gradient in zip(made, gradients, strict=True):
        parameter.grad = torch.tensor(gradient)
    return made


def test_groups_of_a_name_are_one():
    matrix, vector, other = (nn.Parameter(torch.ones(1)) for _ in range(3))
    groups = [{"params": [one], "name": name} for one, name in ((matrix, "a"), (vector, "a"), (other, "b"))]
    found = named_groups(torch.optim.SGD(groups, lr=1.0))
    assert {name: [id(one) for one in of] for name, of in found.items()} == {
        "a": [id(matrix), id(vector)],
        "b": [id(other)],
    }


def test_a_norm_is_that_of_one_long_vector():
    made = parameters([3.0], [0.0, 4.0])
    assert grad_norm(made).item() == 5.0
    drop_gradients(made)
    assert grad_norm(made).item() == 0.0


@pytest.mark.parametrize(
    ("value", "algorithm", "expected"),
    [
        (1.0, "norm", [0.6, 0.0, 0.8]),
        (10.0, "norm", [3.0, 0.0, 4.0]),
        (3.5, "value", [3.0, 0.0, 3.5]),
        (None, None, [3.0, 0.0, 4.0]),
        (0.0, "norm", [3.0, 0.0, 4.0]),
    ],
)
def test_clipping_is_the_trainers(value, algorithm, expected):
    made = parameters([3.0], [0.0, 4.0])
    clip_gradients(made, value, algorithm)
    assert torch.cat([one.grad for one in made]).tolist() == pytest.approx(expected, rel=1e-5)


def test_a_step_without_gradients_changes_nothing():
    """Neither weights, which would decay, nor moments."""
    made = parameters([3.0], [0.0, 4.0])
    optimizer = torch.optim.AdamW(made, lr=0.1, weight_decay=0.5, fused=True)
    optimizer.step()
    before = [one.detach().clone() for one in made]
    moments = {name: value.clone() for name, value in optimizer.state[made[1]].items()}
    drop_gradients(made)
    optimizer.step()
    assert all(torch.equal(one, other) for one, other in zip(before, made, strict=True))
    assert all(torch.equal(value, optimizer.state[made[1]][name]) for name, value in moments.items())


def test_a_touch_reaches_everything_and_moves_nothing():
    made = parameters([3.0], [0.0, 4.0])
    drop_gradients(made)
    loss = touch(made)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.cat([one.grad for one in made]).tolist() == [0.0, 0.0, 0.0]
