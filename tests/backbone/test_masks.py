"""What a banded layer sees: its window, neither more nor less, however rows are laid out and whoever computes it."""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask, flex_attention

from gpt_modules.backbone import GPT, Decoder, DecoderConfig, generate
from gpt_modules.backbone.masks import FUSED_HEAD_SIZE, attention_masks, band_rule, block_mask, can_fuse, in_band

WINDOW = 4
CONFIG = DecoderConfig(
    vocab_size=61, n_positions=40, n_layer=2, n_head=2, n_embd=16, attention=("banded",), window=WINDOW
).without_dropout()


def make(config: DecoderConfig = CONFIG, **changes: Any) -> Decoder:
    decoder = Decoder(dataclasses.replace(config, **changes)).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return decoder


def rows(*shape: int) -> Tensor:
    return torch.randint(61, shape, generator=torch.Generator().manual_seed(1))


def seen_by_the_last(decoder: Decoder, width: int) -> list[int]:
    """The tokens whose embeddings the last hidden state depends on."""
    grown: list[Tensor] = []

    def keep(module: torch.nn.Module, inputs: Any, output: Tensor) -> Tensor:
        grown.append(output.detach().requires_grad_())
        return grown[0]

    with decoder.wte.register_forward_hook(keep):
        decoder(rows(1, width))[0, -1].square().sum().backward()
    assert grown[0].grad is not None
    return grown[0].grad[0].abs().sum(1).nonzero()[:, 0].tolist()


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_bands_reach_back_by_window_less_one_a_layer_and_not_a_token_further(layers: int, norm: str) -> None:
    reach = layers * (WINDOW - 1)
    assert seen_by_the_last(make(n_layer=layers, norm=norm), 20) == list(range(19 - reach, 20))


def test_one_dense_layer_sees_everything() -> None:
    assert seen_by_the_last(make(attention=("dense", "banded")), 20) == list(range(20))


def test_a_window_as_wide_as_the_row_is_dense_attention() -> None:
    banded, tokens = make(window=12), rows(2, 12)
    dense = make(attention=("dense",))
    dense.load_state_dict(banded.state_dict())
    assert torch.equal(banded(tokens), dense(tokens))


def test_a_naive_loop_agrees() -> None:
    decoder, tokens = make(n_layer=1), rows(1, 11)
    attention = decoder.blocks[0].attn
    states = decoder.blocks[0].ln_1(decoder.wte(tokens) + decoder.wpe.weight[:11])[0]
    query, key, value = attention.qkv(states).view(11, 3, 2, 8).unbind(1)
    mixed = torch.zeros(11, 2, 8)
    for at in range(11):
        for head in range(2):
            near = slice(max(0, at - WINDOW + 1), at + 1)
            weights = (key[near, head] @ query[at, head] / 8**0.5).softmax(0)
            mixed[at, head] = weights @ value[near, head]
    mask = attention_masks(decoder.config, tokens, None, None, torch.float32, fused=False)["banded"]
    found = attention(states[None], mask)
    torch.testing.assert_close(found[0], attention.proj(mixed.flatten(1)))


def test_packed_segments_equal_separate_forwards() -> None:
    decoder, parts = make(attention=("dense", "banded")), [rows(1, 9), rows(1, 3) + 0, rows(1, 6)]
    tokens = torch.cat([*parts, torch.zeros(1, 2, dtype=torch.long)], dim=1)
    lengths = [9, 3, 6, 2]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    segments = torch.tensor([1, 2, 3, 0]).repeat_interleave(torch.tensor(lengths))[None]
    packed = decoder(tokens, positions, segments)
    torch.testing.assert_close(packed[:, :18], torch.cat([decoder(part) for part in parts], dim=1))
    assert packed.isfinite().all()


def test_left_right_and_no_padding_agree() -> None:
    decoder, tokens = make(attention=("dense", "banded")), rows(1, 9)
    alone, padding = decoder(tokens), torch.full((1, 6), 7)
    mask = torch.arange(15)[None] >= 6
    left = decoder(torch.cat([padding, tokens], dim=1), attention_mask=mask)
    torch.testing.assert_close(left[:, 6:], alone)
    assert left.isfinite().all()
    torch.testing.assert_close(decoder(torch.cat([tokens, padding], dim=1))[:, :9], alone)


def test_generation_far_beyond_the_window_equals_full_forwards() -> None:
    model, prompts = (
        GPT(dataclasses.replace(CONFIG, attention=("dense", "banded"))),
        [[3], [5, 9, 2, 11, 30, 8], [1, 4]],
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    out = generate(model, prompts, max_new_tokens=20, eos_id=None, generator=torch.Generator().manual_seed(0))
    for row, prompt in enumerate(prompts):
        logits = model(torch.tensor([prompt + out.tokens[row].tolist()]))[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits, dim=1).gather(1, out.tokens[row, :, None])[:, 0]
        torch.testing.assert_close(out.logprobs[row], expected, atol=1e-4, rtol=0.0)


@pytest.mark.parametrize("given", [None, "segments", "attention_mask"])
def test_masks_are_made_only_where_they_are_needed(given: str | None) -> None:
    def masks(width: int, **changes: Any) -> Any:
        tokens = torch.ones(2, width, dtype=torch.long)
        layout = {"segments": None, "attention_mask": None}
        layout |= {given: tokens.bool() if given == "attention_mask" else tokens} if given else {}
        config = dataclasses.replace(CONFIG, **{"attention": ("dense", "banded"), **changes})
        return attention_masks(config, tokens, **layout, dtype=torch.float32, fused=False)

    assert "banded" not in masks(9, attention=("dense",))
    short, long = masks(WINDOW), masks(WINDOW + 1)
    assert short["banded"] is short["dense"]
    assert (short["dense"] is None) == (long["dense"] is None) == (given is None)
    assert int(long["banded"].isfinite().sum(-1).max()) == WINDOW


@pytest.mark.parametrize("width", [1, 5, 130, 300])
@pytest.mark.parametrize("window", [1, 64, 129, 500])
def test_the_fused_rule_is_the_same_band(width: int, window: int) -> None:
    found = create_mask(band_rule(window), None, None, width, width, device="cpu")
    assert torch.equal(found[0, 0], in_band(width, window, torch.device("cpu")))


# The fused kernel is for CUDA; on a CPU the same call runs unfused, and says so.
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize(
    "heads", [{"n_head": 2}, {"n_head": 4, "n_kv_head": 2, "head_size": 16, "positions": "rotary"}]
)
@pytest.mark.parametrize("width", [5, 150, 300])
def test_blocks_give_the_numbers_of_the_tensor(
    width: int, heads: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt_modules.backbone.masks._compiled", lambda: flex_attention)
    decoder = make(n_positions=300, window=100, attention=("dense", "banded"), n_embd=2 * FUSED_HEAD_SIZE, **heads)
    tokens, decoder.one_width = rows(2, width), True
    with torch.no_grad():
        expected = decoder(tokens)
        monkeypatch.setattr("gpt_modules.backbone.decoder.can_fuse", lambda *_: True)
        torch.testing.assert_close(decoder(tokens), expected)
    blocks = block_mask(300, 100, torch.device("cpu"))
    assert blocks is block_mask(300, 100, torch.device("cpu"))
    # Of 3 x 3 blocks of 128, those above the diagonal are not visited, nor the one out of reach.
    assert blocks.full_kv_num_blocks is not None
    assert (blocks.kv_num_blocks + blocks.full_kv_num_blocks).tolist() == [[[1, 2, 2]]]


def test_what_rules_the_fused_kernel_out() -> None:
    config = dataclasses.replace(CONFIG, n_embd=2 * FUSED_HEAD_SIZE)
    assert not can_fuse(config, torch.device("cpu"), training=True)
    assert not can_fuse(config, torch.device("cuda"), training=False)
    assert not can_fuse(dataclasses.replace(config, attn_pdrop=0.1), torch.device("cuda"), training=True)
    assert not can_fuse(CONFIG, torch.device("cuda"), training=True)  # heads of 8


@pytest.mark.parametrize(
    ("capability", "triton", "hip", "fuses"),
    [
        ((7, 0), True, None, True),
        ((9, 0), True, None, True),
        ((6, 1), True, None, False),
        ((9, 0), False, None, False),
        ((6, 1), True, "6.2", True),
    ],
)
def test_where_nothing_rules_it_out_the_fused_kernel_is_taken(
    capability: tuple[int, int], triton: bool, hip: str | None, fuses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr("gpt_modules.backbone.masks._has_triton", lambda: triton)
    config = dataclasses.replace(CONFIG, n_embd=2 * FUSED_HEAD_SIZE)
    assert can_fuse(config, torch.device("cuda"), training=True) == fuses
    assert not can_fuse(config, torch.device("cpu"), training=True)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_a_decoder_in_training_asks_and_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its numbers are those of the explicit mask; in evaluation, beside a mask of padding, and where rows are of any
    width, as in PPO, which scores what it then learns from, it is not taken.
    """
    calls = []

    def kernel(*arguments: Any, **keywords: Any) -> Tensor:
        calls.append(0)
        found: Tensor = flex_attention(*arguments, **keywords)
        return found

    monkeypatch.setattr("gpt_modules.backbone.masks._compiled", lambda: kernel)
    decoder, tokens = make(attention=("dense", "banded"), n_embd=2 * FUSED_HEAD_SIZE).train(), rows(2, 20)
    expected = decoder(tokens)
    assert not calls
    monkeypatch.setattr("gpt_modules.backbone.decoder.can_fuse", lambda config, device, training: training)
    decoder(tokens)
    assert not calls
    decoder.one_width = True
    with torch.no_grad():
        torch.testing.assert_close(decoder(tokens), expected)
    assert len(calls) == 1, "in the banded layer alone"
    decoder(tokens, attention_mask=torch.ones(2, 20, dtype=torch.bool))
    decoder.eval()(tokens)
    assert len(calls) == 1


def test_masks_are_made_in_the_type_that_attention_computes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or each layer would cast them again."""
    seen, own = [], F.scaled_dot_product_attention

    def attend(*arguments: Any, attn_mask: Tensor, **keywords: Any) -> Tensor:
        seen.append(attn_mask.dtype)
        found: Tensor = own(*arguments, attn_mask=attn_mask, **keywords)
        return found

    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    decoder, tokens = make(attention=("dense", "banded")), rows(2, 12)
    decoder(tokens, segments=torch.ones_like(tokens))
    with torch.autocast("cpu", torch.bfloat16):
        decoder(tokens, segments=torch.ones_like(tokens))
    assert seen == [torch.float32] * 2 + [torch.bfloat16] * 2


def test_dropout_falls_on_banded_attention_too() -> None:
    decoder = make(attn_pdrop=0.5).train()
    assert not torch.equal(decoder(rows(1, 12)), decoder(rows(1, 12)))
