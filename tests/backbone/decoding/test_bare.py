"""A stand-in says what its model says, bit for bit, has no module where a step calls many, and stands aside where a
call of one is more than its forward.
"""

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gpt_modules.backbone import GPT, DecoderConfig, LoRAConfig, generate
from gpt_modules.backbone.decoding.bare import bare
from gpt_modules.backbone.decoding.generation import new_cache
from gpt_modules.backbone.lora import add_lora

ROTARY: dict[str, Any] = {"positions": "rotary", "tied": False}
FIELDS: dict[str, dict[str, Any]] = {
    "GPT-1": {"norm": "post"},
    "GPT-2": {},
    "GPT-3": {"attention": ("dense", "banded"), "window": 4},
    "GPT-NeoX": ROTARY | {"rope_fraction": 0.25, "mlp": "gelu", "parallel_residual": True},
    "Qwen3": ROTARY | {"norm_kind": "rms", "mlp": "swiglu", "n_kv_head": 2, "qk_norm": True, "mlp_bias": False},
    "OPT": {"mlp": "relu", "position_offset": 2},
}
TOKENS = torch.tensor([[0, 0, 3, 9, 4], [5, 1, 30, 7, 8]])
MASK = torch.tensor([[False, False, True, True, True], [True] * 5])


def make(**fields: Any) -> GPT:
    torch.manual_seed(0)
    return GPT(DecoderConfig(vocab_size=31, n_positions=24, n_layer=2, n_head=4, n_embd=32, **fields)).eval()


def states(model: GPT, hidden: Any) -> Iterator[Tensor]:
    """Of unequal prompts and of tokens that follow one by one; of rows that are read without a cache."""
    cache = new_cache(model, 2, 12, static=False)
    yield hidden(TOKENS, attention_mask=MASK, cache=cache)
    for step in range(4):
        yield hidden(TOKENS[:, step : step + 1], cache=cache)
    yield hidden(TOKENS)


@pytest.mark.parametrize("name", FIELDS)
@torch.no_grad()
def test_it_gives_what_the_model_gives(name: str) -> None:
    model = make(**FIELDS[name])
    for found, expected in zip(states(model, bare(model).hidden), states(model, model.hidden), strict=True):
        assert torch.equal(found, expected)


class Counting(GPT):
    """Somebody's own, which has its parent speak for it."""

    calls = 0

    def hidden(self, *arguments: Any, **named: Any) -> Tensor:
        self.calls += 1
        return super().hidden(*arguments, **named)


@torch.no_grad()
def test_a_class_of_a_users_own_is_called_as_it_is() -> None:
    torch.manual_seed(0)
    model = Counting(make().config).eval()
    drawn = generate(model, [[1, 2, 3]], max_new_tokens=4, temperature=0.0, eos_id=None)
    plain = make()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(
        drawn.tokens, generate(plain, [[1, 2, 3]], max_new_tokens=4, temperature=0.0, eos_id=None).tokens
    )
    assert model.calls == 4


def modules_in(part: Any) -> list[nn.Module]:
    if isinstance(part, nn.Module):
        return [part]
    inside = part if isinstance(part, list) else vars(part).values() if hasattr(part, "forward") else []
    return [module for one in inside for module in modules_in(one)]


@pytest.mark.parametrize("name", FIELDS)
def test_no_module_is_left_but_the_embeddings(name: str) -> None:
    model = make(**FIELDS[name])
    assert modules_in(bare(model)) == model.decoder.embeddings + ([] if model.config.tied else [model.lm_head])


def test_what_somebody_watches_is_called() -> None:
    model, seen = make(), []
    layers = [model.decoder.blocks[1].mlp.fc, model.decoder.blocks[0], model.decoder.ln_f]
    for layer in layers:
        layer.register_forward_hook(lambda layer, *_: seen.append(layer))
    generate(model, [[1, 2]], max_new_tokens=3, eos_id=None)
    assert [seen.count(layer) for layer in layers] == [3, 3, 3]


def test_hooks_of_all_modules_are_called() -> None:
    model, seen = make(), []
    expected = generate(model, [[1, 2]], max_new_tokens=3, eos_id=None, temperature=0.0).tokens
    hook = nn.modules.module.register_module_forward_pre_hook(lambda module, _: seen.append(module))
    try:
        found = generate(model, [[1, 2]], max_new_tokens=3, eos_id=None, temperature=0.0).tokens
    finally:
        hook.remove()
    assert seen.count(model.decoder.blocks[1].attn.qkv) == 3
    assert torch.equal(found, expected)


@torch.no_grad()
def test_layers_that_are_not_known_do_what_they_do() -> None:
    model = make()
    add_lora(model.decoder, LoRAConfig(2, targets=("attn.qkv", "mlp.proj")))
    for name, parameter in model.named_parameters():
        if name.endswith("lora_b"):
            parameter.normal_()
    model.decoder.blocks[0].mlp.fc.forward = lambda x: x.repeat(1, 1, 4)
    expected = list(states(model, model.hidden))
    assert all(map(torch.equal, states(model, bare(model).hidden), expected))
    assert not torch.equal(next(states(make(), make().hidden)), expected[0])


@torch.no_grad()
def test_weights_may_change_beneath_it() -> None:
    """They are lent in another layout and come back."""
    model = make()
    hidden = bare(model).hidden
    for parameter in model.parameters():
        parameter.data = 2 * parameter.data
    assert all(map(torch.equal, states(model, hidden), states(model, model.hidden)))


def test_it_is_gone_once_nobody_holds_it() -> None:
    """With copies of weights that it may hold; a collection would come any time later."""
    made = bare(make())
    gone = weakref.ref(made.decoder.blocks[0].attn)
    gc.disable()
    try:
        del made
        assert gone() is None
    finally:
        gc.enable()
