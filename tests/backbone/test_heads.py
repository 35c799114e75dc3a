"""The scalar head: spread at the start, shape of the output."""

import pytest
import torch

from gpt_modules.backbone import ScalarHead


def test_variance_at_the_start_is_one_over_width_and_one() -> None:
    torch.manual_seed(0)
    head = ScalarHead(8191)
    assert head.linear.weight.var().item() == pytest.approx(1 / 8192, rel=0.05)
    assert head.linear.bias.item() == 0.0


@pytest.mark.parametrize("shape", [(), (3,), (3, 4)])
def test_one_number_for_each_state(shape: tuple[int, ...]) -> None:
    assert ScalarHead(5)(torch.ones(*shape, 5)).shape == shape
