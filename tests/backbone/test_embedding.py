"""What an embedding lends to the head it is tied to changes no gradient, however it is used."""

import pytest
import torch
from torch import Tensor

from gpt_modules.backbone import GPT, DecoderConfig
from gpt_modules.functional import linear_cross_entropy

SIZES = {"vocab_size": 2000, "n_positions": 12, "n_layer": 1, "n_head": 2, "n_embd": 8}
TOKENS = torch.randint(9, (3, 11), generator=torch.Generator().manual_seed(0))  # most stand there more than once


def make(tied: bool = True) -> GPT:
    torch.manual_seed(0)
    return GPT(DecoderConfig(**SIZES, tied=tied)).eval()


def loss(model: GPT, lent: bool, tokens: Tensor = TOKENS) -> Tensor:
    hidden, weight = (
        model.hidden_and_head(tokens[:, :-1]) if lent else (model.hidden(tokens[:, :-1]), model.head_weight)
    )
    return linear_cross_entropy(hidden.flatten(0, 1), weight, tokens[:, 1:].flatten())


def gradients(model: GPT, total: Tensor, **options: bool) -> tuple[Tensor, ...]:
    return torch.autograd.grad(total * 0.25, list(model.parameters()), **options)


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_are_those_of_torch_to_the_bit(tied: bool) -> None:
    model = make(tied)
    lent, own = (gradients(model, loss(model, kind)) for kind in (True, False))
    assert all(torch.equal(*pair) for pair in zip(lent, own, strict=True))


def test_they_add_up_over_several_losses_and_walks() -> None:
    model = make()
    both = loss(model, lent=True) + loss(model, lent=True, tokens=TOKENS.flip(0, 1))
    once, twice = (gradients(model, both, retain_graph=True) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(once, twice, strict=True))
    alone = gradients(model, loss(model, lent=False) + loss(model, lent=False, tokens=TOKENS.flip(0, 1)))
    for found, expected in zip(once, alone, strict=True):
        torch.testing.assert_close(found, expected)


def test_a_use_of_one_alone_is_whole() -> None:
    """Of states that no head reads, and of a head beside states that are constants."""
    model = make()
    hidden, _ = model.hidden_and_head(TOKENS)
    found = torch.autograd.grad(hidden.square().sum(), model.head_weight)[0]
    assert torch.equal(found, torch.autograd.grad(model.hidden(TOKENS).square().sum(), model.head_weight)[0])
    _, weight = model.hidden_and_head(TOKENS)
    assert torch.equal(torch.autograd.grad(weight.sum(), model.head_weight)[0], torch.ones_like(weight))


def test_nothing_is_lent_for_longer_than_a_loss() -> None:
    model = make()
    model.hidden_and_head(TOKENS)
    assert model.decoder.wte.lent is None
    assert model.head_weight is model.decoder.wte.weight
    with pytest.raises(IndexError):
        model.hidden_and_head(torch.full((1, 2), 2000))
    assert not model.decoder.wte.lending
    with torch.no_grad():
        assert model.hidden_and_head(TOKENS)[1] is model.decoder.wte.weight


def test_a_tied_matrix_has_one_gradient_in_memory() -> None:
    """Beside the head's: nothing as large is made in the backward pass."""
    model = make()
    total = loss(model, lent=True)
    with torch.profiler.profile(profile_memory=True) as seen:
        total.backward()
    largest = max(event.nbytes() for event in seen.profiler.kineto_results.events() if event.name() == "[memory]")
    assert largest < model.head_weight.numel() * 4
