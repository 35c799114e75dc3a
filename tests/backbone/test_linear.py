"""Whoever multiplies, a linear layer is that of torch; and where kernels would be made for every width, torch does."""

from collections.abc import Callable
from functools import partial
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from gpt_modules.backbone import Decoder, DecoderConfig
from gpt_modules.backbone.activations import ACTIVATIONS
from gpt_modules.backbone.config import Activation
from gpt_modules.backbone.linear import LARGE, Linear, _has_kernels, made_again
from gpt_modules.backbone.norms import norm

WIDE, NARROW = 1024, 512
ROWS = (2, LARGE // (2 * WIDE * NARROW))


def pair(bias: bool = True) -> tuple[Linear, nn.Linear]:
    torch.manual_seed(0)
    ours, theirs = Linear(NARROW, WIDE, bias=bias), nn.Linear(NARROW, WIDE, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    ours.one_width = True
    return ours, theirs


def gradients(layer: nn.Module, x: Tensor, apply: Callable[[Tensor], Tensor] | None = None) -> list[Tensor]:
    """Of first order, and those of their squares: of second. `apply`: as `layer` is applied where it is not alone."""
    leaves = [x.clone().requires_grad_(), *layer.parameters()]
    first = torch.autograd.grad((apply or layer)(leaves[0]).square().mean(), leaves, create_graph=True)
    total = sum((gradient.square().sum() for gradient in first), torch.zeros(()))
    return [*first, *torch.autograd.grad(total, leaves)]


@pytest.mark.parametrize("bias", [True, False])
def test_numbers_and_gradients_are_those_of_torch(bias: bool) -> None:
    ours, theirs = pair(bias)
    x = torch.randn(*ROWS, NARROW, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)
    for found, expected in zip(gradients(ours, x), gradients(theirs, x), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


NORMS = ("layer", "rms")


def norm_of(kind: str, width: int) -> nn.Module:
    """With weights that are not those of a start."""
    made = norm(DecoderConfig(vocab_size=8, n_positions=4, n_layer=1, n_head=1, n_embd=width, norm_kind=kind), width)
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


@pytest.mark.parametrize("name", [*ACTIVATIONS, *NORMS])
def test_what_is_made_again_has_the_gradients_of_what_is_kept(name: str) -> None:
    """Bit for bit, those of second order to rounding."""
    torch.manual_seed(0)
    layer = Linear(WIDE, NARROW)
    layer.one_width = True
    make = norm_of(name, WIDE) if name in NORMS else partial(made_again, ACTIVATIONS[cast(Activation, name)])
    x = torch.randn(2, ROWS[1], 2 * WIDE if name == "swiglu" else WIDE)
    found = gradients(layer, x, lambda x: layer(make(x)))
    expected = gradients(layer, x, lambda x: layer(make(x)[:]))  # of which nobody knows how it was made
    assert all(torch.equal(*pair) for pair in zip(found[:3], expected[:3], strict=True))
    for mine, theirs in zip(found[3:], expected[3:], strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)


@pytest.mark.skipif(not _has_kernels(), reason="torch's own product keeps what enters it")
@pytest.mark.parametrize("name", NORMS)
def test_a_layer_keeps_no_more_than_the_norm_that_it_reads(name: str) -> None:
    layer, made = pair()[0], norm_of(name, NARROW)
    x = torch.randn(*ROWS, NARROW, requires_grad=True)
    assert kept(lambda: layer(made(x))) == kept(lambda: made(x)) + 1  # its weight


@pytest.mark.skipif(not _has_kernels(), reason="torch's own product keeps what enters it")
def test_a_narrow_layer_keeps_what_it_reads() -> None:
    """Making it again would take a twentieth of such a model's time."""
    made = norm_of("layer", WIDE)
    narrow, wide = Linear(WIDE, NARROW - 1), Linear(WIDE, NARROW)
    narrow.one_width = wide.one_width = True
    x = torch.randn(*ROWS, WIDE, requires_grad=True)
    assert kept(lambda: narrow(made(x))) == kept(lambda: wide(made(x))) + 1


def kept(apply: Callable[[], Tensor]) -> int:
    """How many tensors, by their memory, are kept for the backward pass."""
    places: set[int] = set()

    def note(tensor: Tensor) -> Tensor:
        places.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = apply()
    del out
    return len(places)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("hook", [lambda *given: 2 * given[-1], lambda *given: given[-1].mul_(2)])
def test_what_a_hook_makes_of_a_norm_is_what_a_layer_learns_from(name: str, hook: Callable[..., Tensor]) -> None:
    """Another tensor, or the same changed in place."""
    layer, made = pair()[0], norm_of(name, NARROW)
    x = torch.randn(*ROWS, NARROW)
    expected = torch.autograd.grad(layer(2 * made(x).detach()).square().mean(), layer.weight)
    made.register_forward_hook(hook)
    found = torch.autograd.grad(layer(made(x)).square().mean(), layer.weight)
    assert torch.equal(*found, *expected)


def test_a_frozen_layer_passes_the_gradient_on() -> None:
    ours, theirs = (layer.requires_grad_(False) for layer in pair())
    x = torch.randn(*ROWS, NARROW, requires_grad=True)
    found, expected = (torch.autograd.grad(layer(x).square().mean(), x)[0] for layer in (ours, theirs))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_without_gradients_a_row_is_the_same_whether_many_widths_are_learnt_from_or_one() -> None:
    ours, theirs = pair()
    x = torch.randn(*ROWS, NARROW)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


def test_only_a_decoder_that_is_told_so_expects_one_width() -> None:
    decoder = Decoder(DecoderConfig(vocab_size=8, n_positions=4, n_layer=2, n_head=1, n_embd=4))
    layers = [layer for layer in decoder.modules() if isinstance(layer, Linear)]
    assert len(layers) == 8
    assert not any(layer.one_width for layer in layers)
    decoder.expect_one_width()
    assert all(layer.one_width for layer in layers)
