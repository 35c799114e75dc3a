"""What a token may see, in every way of laying rows out; how weights start; names after compiling."""

import math
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from their_models import FAMILIES, our_model, their_model
from torch import Tensor, nn

from gpt_modules.backbone import Decoder, DecoderConfig
from gpt_modules.backbone.activations import ACTIVATIONS
from gpt_modules.backbone.linear import Linear, _has_kernels
from gpt_modules.errors import UserError

VOCAB = 61
ROTARY = {"positions": "rotary", "mlp": "gelu", "parallel_residual": True, "rope_fraction": 0.5, "tied": False}
GROUPED = {"positions": "rotary", "n_head": 4, "n_kv_head": 2, "head_size": 6, "norm_kind": "rms", "mlp": "swiglu",
           "qk_norm": True, "n_inner": 24, "qkv_bias": False, "proj_bias": False, "mlp_bias": False}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "pre": {},
    "post": {"norm": "post"},
    "offset": {"position_offset": 2, "mlp": "relu"},
    "parallel": ROTARY,
    "grouped": GROUPED,
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def make(kind: str = "pre", **sizes: Any) -> Decoder:
    values = {"vocab_size": VOCAB, "n_positions": 24, "n_layer": 2, "n_head": 2, "n_embd": 16, **KINDS[kind], **sizes}
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig.from_dict(values)).eval()
    with torch.no_grad():  # zero biases would hide a bias in the wrong place
        for parameter in decoder.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return decoder


def rows(*shape: int) -> Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_those_of_transformers(family: str, transformers: ModuleType) -> None:
    """Rows packed into one, and padded on the left, too."""
    theirs = their_model(transformers, family)
    ours, random = our_model(theirs, family), torch.Generator().manual_seed(1)
    tokens = torch.randint(2, 41, (2, 30), generator=random)  # OPT's token 1, padding, does not learn
    logits = theirs(tokens).logits
    torch.testing.assert_close(ours(tokens), logits, atol=1e-5, rtol=0)
    embeddings = ours.decoder.wte.weight, theirs.get_input_embeddings().weight
    found, expected = (
        torch.autograd.grad(output.square().sum(), weight)[0]
        for output, weight in zip((ours(tokens), logits), embeddings, strict=True)
    )
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-5)
    padded = torch.nn.functional.pad(tokens, (4, 0), value=7)
    mask = torch.arange(34)[None].expand(2, -1) >= 4
    torch.testing.assert_close(ours(padded, attention_mask=mask)[:, 4:], logits, atol=1e-5, rtol=0)
    positions, segments = torch.arange(30).repeat(2)[None], torch.tensor([1, 2]).repeat_interleave(30)[None]
    packed = ours(tokens.view(1, -1), positions=positions, segments=segments)
    torch.testing.assert_close(packed.view_as(logits), logits, atol=1e-5, rtol=0)


@EVERY_KIND
def test_no_token_sees_a_later_one(kind: str) -> None:
    decoder, tokens = make(kind), rows(1, 12)
    before = decoder(tokens)
    for changed in range(12):
        other = tokens.clone()
        other[0, changed] = (other[0, changed] + 1) % VOCAB
        same = (decoder(other) - before).abs().amax(dim=2)[0] < 1e-6
        assert same[:changed].all()
        assert not same[changed:].any()


@EVERY_KIND
def test_packed_segments_equal_separate_forwards(kind: str) -> None:
    decoder = make(kind)
    parts = [rows(1, 5), rows(1, 3) + 0, rows(1, 4)]
    tokens = torch.cat([*parts, torch.zeros(1, 2, dtype=torch.long)], dim=1)
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3, 0, 0]])
    segments = torch.tensor([[1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 0, 0]])
    packed = decoder(tokens, positions, segments)
    torch.testing.assert_close(packed[:, :12], torch.cat([decoder(part) for part in parts], dim=1))
    assert packed.isfinite().all()


@EVERY_KIND
@pytest.mark.parametrize("recompute", [False, True])
def test_states_that_are_read_are_those_of_the_whole_with_their_gradients(kind: str, recompute: bool) -> None:
    """Some twice, some never; in the last block nothing is computed for the others behind their keys and values."""
    decoder, tokens, read, seen = make(kind), rows(3, 7), torch.tensor([20, 3, 3, 0, 11]), []
    weights = list(decoder.parameters())
    expected = decoder(tokens).flatten(0, 1)[read]
    decoder.recompute = recompute
    for block in decoder.blocks:
        block.mlp.register_forward_hook(lambda _, inputs, output: seen.append(output[..., 0].numel()))
    found = decoder(tokens, read=read)
    assert seen == [21, 5]
    torch.testing.assert_close(found, expected)
    gradients = (torch.autograd.grad(states.square().sum(), weights) for states in (found, expected))
    torch.testing.assert_close(next(gradients), next(gradients))


@EVERY_KIND
def test_left_right_and_no_padding_agree(kind: str) -> None:
    decoder, tokens = make(kind), rows(1, 6)
    alone = decoder(tokens)
    padding = torch.full((1, 4), 7)
    left = torch.cat([padding, tokens], dim=1)
    mask = torch.arange(10)[None] >= 4
    torch.testing.assert_close(decoder(left, attention_mask=mask)[:, 4:], alone)
    torch.testing.assert_close(decoder(torch.cat([tokens, padding], dim=1))[:, :6], alone)


def test_nothing_but_padding_is_finite_with_finite_gradients() -> None:
    decoder, tokens = make(), rows(2, 5)
    mask = torch.tensor([[False] * 5, [True] * 5])
    hidden = decoder(tokens, attention_mask=mask)
    hidden.sum().backward()
    assert hidden.isfinite().all()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in decoder.parameters())


@EVERY_KIND
def test_mixed_precision_stays_close(kind: str) -> None:
    decoder, tokens = make(kind), rows(2, 6)
    mask = torch.arange(6)[None] >= torch.tensor([[0], [2]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = decoder(tokens, attention_mask=mask)
    assert ((mixed.float() - decoder(tokens, attention_mask=mask))[mask].abs() < 0.15).all()


def test_row_longer_than_the_positions_is_refused() -> None:
    with pytest.raises(UserError, match=r"^tokens: found rows of 25, expected at most n_positions = 24$"):
        make()(rows(1, 25))


@pytest.mark.parametrize(("init", "scale"), [("gpt1", 1.0), ("gpt2", 1 / math.sqrt(6))])
def test_initial_spread(init: str, scale: float) -> None:
    torch.manual_seed(0)
    decoder = Decoder(
        DecoderConfig.from_dict({"vocab_size": 900, "n_layer": 3, "n_embd": 96, "n_head": 2, "init": init})
    )
    for name, parameter in decoder.named_parameters():
        if parameter.ndim == 2:
            expected = 0.02 * scale if name.endswith("proj.weight") else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.05)
        else:
            assert (parameter == (1.0 if "ln_" in name and name.endswith("weight") else 0.0)).all()


def test_dropout_works_in_training_only() -> None:
    decoder, tokens = make(), rows(1, 8)
    assert torch.equal(decoder(tokens), decoder(tokens))
    decoder.train()
    assert not torch.equal(decoder(tokens), decoder(tokens))


# torch's own words on importing its compiler
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_compiled_blocks_keep_their_names() -> None:
    decoder = make()
    names = list(decoder.state_dict())
    decoder.compile_blocks()
    assert list(decoder.state_dict()) == names
    assert not any("_orig_mod" in name for name, _ in decoder.named_modules())


def test_rows_beyond_the_positions_are_refused_and_padding_is_none() -> None:
    decoder = make()
    wide = decoder.config.n_positions + 3
    with pytest.raises(UserError, match=rf"^tokens: found rows of {wide}, expected at most n_positions = "):
        decoder(rows(1, wide))
    with pytest.raises(UserError, match=rf"^tokens: found rows of {wide}, expected at most n_positions = "):
        decoder(rows(1, wide), attention_mask=torch.ones(1, wide, dtype=torch.bool))
    tokens, mask = rows(1, wide), torch.arange(wide)[None] >= 3
    torch.testing.assert_close(decoder(tokens, attention_mask=mask)[:, 3:], decoder(tokens[:, 3:]))


@pytest.mark.skipif(not _has_kernels(), reason="torch's own product keeps what enters it")
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_mlp_keeps_one_tensor_of_its_inner_width(activation: str) -> None:
    """And what it reads: what stands between is made again."""
    mlp = make("pre", n_embd=512, n_inner=2048, mlp=activation).blocks[0].mlp
    of_gate = 3 * 2048 if activation == "swiglu" else 2048  # both halves, and the gate's own value
    assert widths_kept(mlp) == 512 + of_gate


@pytest.mark.skipif(not _has_kernels(), reason="torch's own product keeps what enters it")
@pytest.mark.parametrize("parallel", [False, True])
def test_a_block_keeps_nothing_that_a_norm_gives(parallel: bool) -> None:
    """Of each token: what norms read (of a block in parallel it is the same), queries, keys and values, what attention
    gives, the inner width of the MLP; a mean and a spread a norm, and the sum of each head's exponentials.
    """
    block = make(n_embd=512, n_inner=2048, n_head=4, parallel_residual=parallel).blocks[0]
    assert widths_kept(block) == ((1 if parallel else 2) + 3 + 1 + 4) * 512 + 2 * 2 + 4


def widths_kept(layer: nn.Module) -> float:
    """Numbers that a layer keeps for the backward pass, a token, beside its weights."""
    for part in layer.modules():
        if isinstance(part, Linear):
            part.one_width = True
    kept: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
    x = torch.randn(1, 128, 512, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(partial(_note, kept), lambda tensor: tensor):
        layer(x)
    return sum(count for place, count in kept.items() if place not in weights) / 128


def _note(kept: dict[int, int], tensor: Tensor) -> Tensor:
    storage = tensor.untyped_storage()
    kept[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
    return tensor
