"""Which parameters an inner loop moves, and how far at first."""

import pytest
import torch

from gpt_modules.errors import UserError
from gpt_modules.training.inner_loop import InnerLoop

PARAMETERS = {"decoder.wte.weight": torch.zeros(5, 3), "head.weight": torch.zeros(2, 3), "head.bias": torch.zeros(2)}


def test_all_moves_or_what_the_patterns_name():
    assert list(InnerLoop().adapted(PARAMETERS)) == list(PARAMETERS)
    assert list(InnerLoop(adapts=["head.*"]).adapted(PARAMETERS)) == ["head.weight", "head.bias"]
    assert list(InnerLoop(adapts=["*.bias", "decoder.wte.weight"]).adapted(PARAMETERS)) == [
        "decoder.wte.weight", "head.bias"]  # fmt: skip
    with pytest.raises(UserError) as caught:
        InnerLoop(adapts=["head.*", "Head.*"]).adapted(PARAMETERS)
    assert str(caught.value) == (
        "inner: adapts: found 'Head.*', which no parameter is called, "
        "expected such as decoder.wte.weight, head.weight, head.bias"
    )


@pytest.mark.parametrize(
    ("rates", "steps", "shapes"),
    [
        ("fixed", 3, [(1,), (1,)]),
        ("per_step", 3, [(3,), (3,)]),
        ("per_step", 0, [(1,), (1,)]),
        ("per_element", 3, [(1, 2, 3), (1, 2)]),
    ],
)
def test_first_rates(rates, steps, shapes):
    inner = InnerLoop(steps, 0.25, rates, ["head.*"])
    found = inner.first_rates(PARAMETERS, {})
    assert list(found) == ["head.weight", "head.bias"]
    assert [tuple(rate.shape) for rate in found.values()] == shapes
    assert all((rate == 0.25).all() for rate in found.values())
    assert inner.learned == (rates != "fixed")


def test_rates_that_were_learned_go_on_where_their_form_is_the_same():
    stored = {"head.weight": torch.tensor([0.1, 0.2]), "head.bias": torch.tensor([0.3]), "gone": torch.ones(2)}
    found = InnerLoop(2, 0.25, "per_step", ["head.*"]).first_rates(PARAMETERS, stored)
    assert {name: rate.tolist() for name, rate in found.items()} == {
        "head.weight": pytest.approx([0.1, 0.2]), "head.bias": [0.25, 0.25]}  # fmt: skip
    fixed = InnerLoop(2, 0.25, "fixed", ["head.bias"]).first_rates(PARAMETERS, stored)
    assert fixed["head.bias"].tolist() == [0.25], "fixed rates are the recipe's"
    weight = {"head.weight": PARAMETERS["head.weight"]}
    assert InnerLoop(2, rates="per_step").first_rates(weight, stored)["head.weight"].tolist() == pytest.approx(
        [0.1, 0.2]
    )
    with pytest.raises(
        UserError, match=r"^inner\.lr: found 0\.25, expected it left at 0\.01: init_from brings rates of"
    ):
        InnerLoop(2, 0.25, "per_step").first_rates(weight, stored)
