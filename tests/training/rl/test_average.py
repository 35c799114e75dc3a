"""The average against its sum in float64."""

import copy

import pytest
import torch
from conftest import shaken

from gpt_modules.backbone import GPT
from gpt_modules.errors import UserError
from gpt_modules.training.rl.average import Average


def weight(model):
    return model.head_weight.detach().double()


@pytest.fixture
def policy(micro):
    return GPT(micro.config())


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_it_is_the_geometric_sum(policy, kind):
    """a = Σ (1 - d) dᵏ w: in bf16 too, where neither 0.992 nor its steps are numbers; and nobody else's weight."""
    policy = policy.to(kind)
    average, expected = Average(policy, 0.992), weight(policy)
    for seed in range(1, 20):
        shaken(policy, seed)
        average.update(policy)
        expected = 0.992 * expected + 0.008 * weight(policy)
    exact = average.state()["decoder.wte.weight"].double()
    assert (exact - expected).abs().max() < 1e-6
    assert average.model(policy).head_weight.dtype == kind
    torch.testing.assert_close(weight(average.model(policy)), expected.to(kind).double(), rtol=1e-2, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in average.model(policy).parameters())


def test_of_weights_that_rest_it_is_these_to_the_bit(policy):
    average = Average(policy, 0.992)
    for _ in range(5):
        average.update(policy)
    assert all(torch.equal(value, policy.state_dict()[name]) for name, value in average.state().items())


def test_it_goes_on(policy):
    first = Average(policy, 0.9)
    first.update(shaken(copy.deepcopy(policy), 1))
    second = Average(shaken(copy.deepcopy(policy), 3), 0.9)
    second.restore({name: value.clone() for name, value in first.state().items()})
    for average in (first, second):
        average.update(shaken(copy.deepcopy(policy), 2))
    assert torch.equal(weight(first.model(policy)), weight(second.model(policy)))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda state: state.pop("decoder.wte.weight"),
            r"^ppo: average: found '\d+ tensors', expected the",
        ),
        (lambda state: state.update({"decoder.wte.weight": torch.ones(2)}), r"^ppo: average\.decoder\.wte\.weight: "),
        (lambda state: state.update({"decoder.wte.weight": 3}), r"^ppo: average\.decoder\.wte\.weight: found 'int'"),
        (lambda state: state["decoder.wte.weight"].fill_(float("nan")), r"weight: found 'NaN or infinity', expected "),
    ],
)
def test_what_is_no_average_of_this_policy_is_told(policy, change, line):
    state = copy.deepcopy(Average(policy, 0.9).state())
    change(state)
    with pytest.raises(UserError, match=line):
        Average(policy, 0.9).restore(state)


def test_an_average_that_the_checkpoint_does_not_have_is_told(policy):
    with pytest.raises(UserError, match=r"^model\.init_args\.ema: found 'an average', expected none, as the "):
        Average(policy, 0.9).restore(None)
