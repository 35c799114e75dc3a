"""Norms, clipping and dropping of gradients by the group that they are of."""

import lightning.pytorch as L
import pytest
import torch
from torch import nn

from gpt_modules.training.rl.gradients import clip_gradients, drop_gradients, grad_norm, named_groups, touch
from gpt_modules.training.rl.settings import CriticConfig


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
    loss = touch(nn.ParameterList(made))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.cat([one.grad for one in made]).tolist() == [0.0, 0.0, 0.0]


# --- in a run ---


@pytest.mark.parametrize(
    ("clip", "expected"),
    [
        ({"gradient_clip_val": 0.01}, {"policy": 0.01, "value": 0.02}),
        ({}, {"policy": None, "value": 0.02}),
        ({"gradient_clip_val": 1e-5, "gradient_clip_algorithm": "value"}, {"policy": "value", "value": 0.02}),
    ],
    ids=str,
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_critics_gradient_has_a_norm_of_its_own(fit, ppo, clip, expected, accumulate):
    """The policy's is clipped to the Trainer's by itself; what is logged is what was before."""
    clipped, before = {}, {}

    class Clipped(L.Callback):
        def on_before_zero_grad(self, trainer, module, optimizer):
            for name, parameters in named_groups(optimizer).items():
                if parameters[0].grad is not None:
                    clipped[name] = grad_norm(parameters).item()
                    clipped[f"{name} largest"] = max(p.grad.abs().max().item() for p in parameters)

        def on_before_optimizer_step(self, trainer, module, optimizer):
            before.update({name: grad_norm(parameters).item() for name, parameters in named_groups(optimizer).items()})

        def on_train_batch_end(self, trainer, module, *_):
            self.on_before_zero_grad(trainer, module, trainer.optimizers[0])

    settings = {"critic": CriticConfig(max_norm=0.02), "missing_eos_score": -30.0, "episodes": 16}
    trainer = fit(
        *ppo(**settings), callbacks=[Clipped()], accumulate_grad_batches=accumulate, limit_val_batches=0, **clip
    )
    assert min(before.values()) > 0.02
    for name, norm in before.items():
        assert trainer.logger.values(f"{name}/grad_norm") == pytest.approx([norm])
    assert clipped["value"] == pytest.approx(0.02, rel=1e-3)
    if expected["policy"] == "value":
        assert clipped["policy largest"] == pytest.approx(1e-5)
    else:
        assert clipped["policy"] == pytest.approx(expected["policy"] or before["policy"], rel=1e-3)


def test_without_one_both_are_clipped_as_one(fit, ppo):
    class Clipped(L.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            self.norm = grad_norm(module.parameters()).item()

    clipped = Clipped()
    fit(*ppo(missing_eos_score=-30.0), callbacks=[clipped], gradient_clip_val=0.05, limit_val_batches=0)
    assert clipped.norm == pytest.approx(0.05, rel=1e-3)
