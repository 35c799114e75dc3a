"""The network of MAML's regression."""

import pytest
import torch
from torch import nn

from gpt_modules.backbone.feedforward import FeedForward
from gpt_modules.errors import UserError


def test_the_papers_network_has_two_hidden_layers_of_40():
    network = FeedForward()
    assert sum(parameter.numel() for parameter in network.parameters()) == 40 + 40 + 40 * 40 + 40 + 40 + 1
    assert network(torch.zeros(3, 1)).shape == (3, 1)


def test_layers_by_hand():
    network = FeedForward(2, [3], 4)
    first, second = (layer for layer in network if isinstance(layer, nn.Linear))
    x = torch.randn(5, 2)
    expected = (x @ first.weight.T + first.bias).clamp(min=0) @ second.weight.T + second.bias
    torch.testing.assert_close(network(x), expected)
    assert (network(x) < 0).any(), "nothing is cut off behind the last layer"
    assert len(FeedForward(2, [], 4)) == 1


@pytest.mark.parametrize("width", [0, -1, 10**30])
def test_widths_that_no_layer_has_are_refused(width):
    with pytest.raises(UserError, match=rf"^network: widths: found \[1, 40, {width}, 1\], expected 1 to 2,147,483,647"):
        FeedForward(hidden=[40, width])
