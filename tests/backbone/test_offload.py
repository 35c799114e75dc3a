"""A model that is offloaded lies with the host, visits its device, and says there what it always says."""

import pytest
import torch
from conftest import shaken
from device import CUDA, Device, device

from gpt_modules.backbone import DecoderConfig, RewardModel
from gpt_modules.backbone.offload import offload, uploaded
from gpt_modules.training.sharding.models import gathered, held

CPU = torch.device("cpu")


@pytest.fixture
def model():
    made = shaken(RewardModel(DecoderConfig(20, 8, 1, 2, 8)), 1).eval().requires_grad_(False)
    made.bias.fill_(0.25)  # a buffer
    return made


def places(model):
    """Of parameters and buffers."""
    return {tensor.device for tensor in model.state_dict().values()}


@pytest.mark.parametrize("visit", [lambda model: uploaded([model]), held, gathered])
def test_it_visits_the_device_and_says_the_same(model, visit):
    inputs = torch.randint(20, (2, 5)), torch.tensor([5, 3])
    expected = model(*inputs)
    with device() as paper:
        offload(model, CUDA)
        there = [one.to(CUDA) for one in inputs]
        waits = sum(Device.waits.values())
        assert places(model) == {CPU}
        with visit(model):
            assert places(model) == {CUDA}
            said = model(*there)
        assert places(model) == {CPU}
        assert sum(paper.waits.values()) == waits, "neither the way there nor the way back blocks"
        assert torch.equal(said.cpu(), expected)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_visit_lasts_as_long_as_the_longest(model):
    with device():
        offload(model, CUDA)
        with uploaded([model]):
            with uploaded([model]):
                pass
            assert places(model) == {CUDA}
        assert places(model) == {CPU}


def test_it_goes_home_from_a_pass_that_fails(model):
    with device():
        offload(model, CUDA)
        with pytest.raises(ZeroDivisionError), uploaded([model]):
            raise ZeroDivisionError
        assert places(model) == {CPU}


def test_others_are_left_where_they_are(model):
    own = [*model.parameters()]
    with uploaded([model]), held(model), gathered(model) as same:
        assert same is model
        assert all(one is other for one, other in zip(own, model.parameters(), strict=True))


def test_it_comes_from_wherever_it_is_and_lies_in_the_host_once(model):
    """No copy but the pinned one is left: neither on the device nor in the host's memory."""

    def memory():
        return [tensor.data_ptr() for tensor in model.state_dict().values()]

    with device():
        offload(model.to(CUDA), CUDA)
        assert places(model) == {CPU}
        home = memory()
        with uploaded([model]):
            pass
        assert memory() == home
