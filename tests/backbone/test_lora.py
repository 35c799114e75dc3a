"""Low-rank updates: where they begin, what they are, and the base that stays under them."""

import pytest
import torch
from conftest import shaken
from their_models import our_config

from gpt_modules.backbone import GPT, DecoderConfig, LoRAConfig, RewardModel, add_lora, beam_search, generate
from gpt_modules.backbone.lora import TARGETS, LoRALinear, base_of, lend_merged, lora_layers, merge_lora, without_lora
from gpt_modules.errors import UserError

CONFIG = DecoderConfig(vocab_size=20, n_positions=96, n_layer=3, n_head=2, n_embd=16).without_dropout()
TOKENS = torch.arange(12).view(2, 6)


def adapted(seed=1, config=CONFIG, **settings):
    """A model whose updates have learnt something, and its base."""
    base, model = shaken(GPT(config), seed).eval(), GPT(config).eval()
    model.load_state_dict(base.state_dict())
    add_lora(model.decoder, LoRAConfig(**{"rank": 2, "alpha": 4.0, **settings}))
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.lora_b, std=0.3)
    return model.eval(), base


def test_it_begins_as_its_base_bit_for_bit():
    base = shaken(GPT(CONFIG), 1).eval()
    before, memory = base(TOKENS), {name: value.data_ptr() for name, value in base.state_dict().items()}
    add_lora(base.decoder, LoRAConfig(rank=2))
    assert torch.equal(base(TOKENS), before)
    after = {name: value.data_ptr() for name, value in base.state_dict().items()}
    assert memory.items() <= after.items(), "the same names, and no copy"


@pytest.mark.parametrize("autocast", [False, True])
def test_without_its_updates_it_is_the_base_bit_for_bit(autocast):
    model, base = adapted()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert (model(TOKENS) - base(TOKENS)).abs().max() > 0.1
        with without_lora(model):
            assert torch.equal(model(TOKENS), base(TOKENS))
            with without_lora(model):
                pass
            assert torch.equal(model(TOKENS), base(TOKENS)), "inner contexts end nothing of the outer one"
        assert (model(TOKENS) - base(TOKENS)).abs().max() > 0.1


def test_an_update_is_the_papers():
    """h = W0 x + b + (alpha / r) B A x, by hand."""
    linear = torch.nn.Linear(3, 2)
    layer = LoRALinear(linear, LoRAConfig(rank=1, alpha=3.0))
    with torch.no_grad():
        layer.lora_a.copy_(torch.tensor([[1.0, 0.0, 2.0]]))
        layer.lora_b.copy_(torch.tensor([[10.0], [-1.0]]))
    x = torch.tensor([[[1.0, 5.0, 2.0]]])  # A x = 5
    torch.testing.assert_close(layer(x), linear(x) + torch.tensor([150.0, -15.0]))
    torch.testing.assert_close(layer.merged_weight() - linear.weight, torch.tensor([[30.0, 0, 60], [-3, 0, -6]]))


@pytest.mark.parametrize("targets", [TARGETS, ("mlp.fc",), ("mlp.proj", "attn.qkv")])
def test_updates_alone_learn(targets):
    model, _ = adapted(targets=targets)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(learning) == CONFIG.n_layer * len(targets) * 2
    optimizer = torch.optim.AdamW(learning, lr=0.1)
    model(TOKENS).square().mean().backward()
    optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if "lora_" in name}
    assert {name.rpartition(".")[0].partition("blocks.")[2][2:] for name in moved} == set(targets)


def test_the_first_step_moves_b_alone_and_dropout_strikes_the_update_alone():
    """With B = 0 the gradient of A is zero, and what enters the base is never dropped."""
    model = GPT(CONFIG)
    expected = model(TOKENS)
    add_lora(model.decoder, LoRAConfig(rank=2, dropout=0.5))
    out = model.train()(TOKENS)
    assert torch.equal(out, expected)
    out.square().mean().backward()
    layers = lora_layers(model).values()
    assert all(layer.lora_a.grad.abs().max() == 0 and layer.lora_b.grad.abs().max() > 0 for layer in layers)
    again = adapted(dropout=0.5)[0]
    assert torch.equal(again(TOKENS), again(TOKENS)), "none in evaluation"
    again.train()
    assert not torch.equal(again(TOKENS), again(TOKENS))


@pytest.mark.parametrize("kind", [GPT, RewardModel])
def test_merged_it_is_a_plain_model_of_the_same_function_and_shares_what_has_no_update(kind):
    model = shaken(kind(CONFIG), 1).eval()
    names = list(model.state_dict())
    add_lora(model.decoder, LoRAConfig(rank=2, targets=("attn.qkv", "mlp.proj")))
    shaken(model, 2)
    out = model(TOKENS) if kind is GPT else model(TOKENS, torch.tensor([6, 4]))
    plain = merge_lora(model)
    assert type(plain) is kind
    assert list(plain.state_dict()) == names
    assert not lora_layers(plain)
    found = plain(TOKENS) if kind is GPT else plain(TOKENS, torch.tensor([6, 4]))
    torch.testing.assert_close(found, out, atol=1e-4, rtol=1e-4)
    assert plain.decoder.wte.weight is model.decoder.wte.weight
    assert plain.decoder.blocks[0].mlp.fc.weight is model.decoder.blocks[0].mlp.fc.weight
    assert len(lora_layers(model)) == 6, "the model goes on with its updates"
    assert merge_lora(plain) is plain


@pytest.mark.parametrize("change", [lambda model: model, lambda model: model.to(torch.bfloat16)], ids=["", "bfloat16"])
def test_the_base_is_a_plain_model_that_shares_all_memory(change):
    model, base = adapted()
    found = base_of(model)
    assert list(found.state_dict()) == list(base.state_dict())
    change(model), change(base)
    for name, parameter in found.named_parameters():
        assert parameter is model.get_parameter(name), name
    assert torch.equal(found(TOKENS), base(TOKENS))
    settings = {"max_new_tokens": 70, "eos_id": None, "temperature": 0.0}
    generate(model, [[1, 2]], **settings)
    assert torch.equal(generate(found, [[1, 2]], **settings).tokens, generate(base, [[1, 2]], **settings).tokens)
    model(TOKENS).square().mean().backward()
    torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    assert torch.equal(found(TOKENS), base(TOKENS))


@pytest.mark.parametrize("family", ["gpt_neox", "qwen3"])
def test_updates_of_todays_decoders_are_those_of_the_matrices(family):
    """Grouped heads and a gate have one A; merged, lent and recomputed it is the same function, and the base stays."""
    model, base = adapted(config=our_config(family))
    updated = model(TOKENS)
    assert (updated - base(TOKENS)).abs().max() > 0.1
    torch.testing.assert_close(merge_lora(model)(TOKENS), updated)
    assert torch.equal(base_of(model)(TOKENS), base(TOKENS))
    with without_lora(model):
        assert torch.equal(model(TOKENS), base(TOKENS))
    prompts, settings = [[3], [5, 9, 2]], {"max_new_tokens": 8, "eos_id": None, "temperature": 0.0}
    assert torch.equal(
        generate(model, prompts, **settings).tokens, generate(merge_lora(model), prompts, **settings).tokens
    )
    learnt = [layer.lora_b for layer in lora_layers(model).values()]
    gradients = torch.autograd.grad(model(TOKENS).square().sum(), learnt)
    model.decoder.recompute = True
    again = torch.autograd.grad(model(TOKENS).square().sum(), learnt)
    torch.testing.assert_close(again, gradients)


def test_a_merge_of_nothing_changes_no_bit():
    base = shaken(GPT(CONFIG), 1)
    add_lora(base.decoder, LoRAConfig(rank=2))
    for name, value in merge_lora(base).state_dict().items():
        assert torch.equal(value, base.state_dict()[name])


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("steps", [4, 80])  # below and above what another layout is worth
def test_generation_speaks_the_updated_model_and_gives_the_base_back(steps, autocast):
    model, base = adapted()
    memory = {name: (value.data_ptr(), value.dtype) for name, value in model.state_dict().items()}
    settings = {"max_new_tokens": steps, "eos_id": None, "temperature": 0.0}
    prompts = [[1, 2, 3], [4]]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        said = generate(model, prompts, **settings)
        expected = generate(merge_lora(model), prompts, **settings)
        with without_lora(model):
            of_base = generate(model, prompts, **settings)
        assert torch.equal(of_base.tokens, generate(base, prompts, **settings).tokens)
    assert torch.equal(said.tokens, expected.tokens)
    torch.testing.assert_close(said.logprobs, expected.logprobs, atol=1e-5, rtol=1e-5)
    assert not torch.equal(said.tokens, of_base.tokens)
    assert {name: (value.data_ptr(), value.dtype) for name, value in model.state_dict().items()} == memory
    assert all(layer.active for layer in lora_layers(model).values())


def test_the_beam_searches_in_the_updated_model():
    model, _ = adapted()
    settings = {"max_new_tokens": 5, "eos_id": 0, "width": 2}
    found, expected = (beam_search(one, [[1, 2]], **settings) for one in (model, merge_lora(model)))
    assert torch.equal(found.tokens, expected.tokens)


def test_what_is_lent_comes_back_after_a_failure():
    model, _ = adapted()
    memory, logits = [p.data_ptr() for p in model.parameters()], model(TOKENS)

    def use():
        with lend_merged(model):
            assert not any(layer.active for layer in lora_layers(model).values())
            torch.testing.assert_close(model(TOKENS), logits, atol=1e-4, rtol=1e-4)
            raise InterruptedError

    with pytest.raises(InterruptedError):
        use()
    assert [p.data_ptr() for p in model.parameters()] == memory
    assert torch.equal(model(TOKENS), logits)


def test_gradients_are_the_same_when_activations_are_recomputed():
    model, _ = adapted()
    found = []
    for recompute in (False, True):
        model.decoder.recompute = recompute
        model.zero_grad()
        model(TOKENS).square().mean().backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "lora.rank: found 0, expected a whole number of at least 1"),
        ({"rank": True}, "lora.rank: found True, expected a whole number of at least 1"),
        ({"alpha": float("nan")}, "lora.alpha: found nan, expected a number above 0"),
        ({"dropout": 1.0}, "lora.dropout: found 1.0, expected a number in [0, 1)"),
        ({"targets": ()}, "lora.targets: found [], expected one or more of attn.qkv, attn.proj, mlp.fc, mlp.proj"),
        ({"targets": ("mlp.fc", "mlp.fc")}, "lora.targets: found ['mlp.fc', 'mlp.fc'], expected one or more of "),
    ],
)
def test_what_makes_no_update_is_refused_by_its_name(settings, message):
    with pytest.raises(UserError) as error:
        LoRAConfig(**settings)
    assert str(error.value).startswith(message)


def test_a_rank_that_is_not_low_is_refused():
    add_lora(GPT(CONFIG).decoder, LoRAConfig(rank=8))
    with pytest.raises(UserError, match=r"^lora\.rank: found 9, expected at most half of n_embd = 16"):
        add_lora(GPT(CONFIG).decoder, LoRAConfig(rank=9))
