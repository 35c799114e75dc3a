"""Models that a run reads and never trains."""

import types

import lightning.pytorch as L
import pytest
import torch
from torch import nn

from gpt_modules.backbone import LoRAConfig, add_lora, base_of, load_pretrained, model_digest
from gpt_modules.errors import UserError
from gpt_modules.training.rl.frozen import REFERENCE, Frozen
from gpt_modules.training.rl.rewards import RewardSource
from gpt_modules.training.rl.sequences import Sequences


def length(prompts, responses):
    return [float(len(response)) for response in responses]


LENGTH = RewardSource(function=f"{__name__}:length", weight=3.0)


class Owner(L.LightningModule):
    """What `open` asks its module for."""

    trainer = None  # Lightning's property, as a plain attribute

    def __init__(self, tokenizer, convert=lambda model: model, precision="32-true"):
        super().__init__()
        plugin = types.SimpleNamespace(convert_module=convert)
        data = types.SimpleNamespace(tokenizer=tokenizer, columns=dict, column=list)
        self.trainer = types.SimpleNamespace(precision_plugin=plugin, datamodule=data, precision=precision)


@pytest.fixture
def sources(micro):
    return [RewardSource(folder=str(micro.reward), weight=2.0), LENGTH]


def test_nothing_trains_it_and_no_module_holds_it(micro, sources):
    frozen = Frozen(str(micro.gpt), sources, {})
    frozen.open(Owner(micro.tokenizer))
    (reward,) = frozen.reward.models().values()
    for model in (frozen.reference, reward):
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert {part.p for part in model.modules() if isinstance(part, nn.Dropout)} <= {0.0}
        assert model.config.resid_pdrop == model.config.embd_pdrop == model.config.attn_pdrop == 0.0
    holder = nn.Module()
    holder.frozen = frozen
    assert not list(holder.parameters())
    assert not holder.state_dict()


def test_rewards_and_monitors_are_opened_once_the_tokenizer_is_known(micro, sources):
    frozen = Frozen(str(micro.gpt), sources, {"letters": RewardSource(function=f"{__name__}:length")})
    assert not frozen.opened
    models = frozen.open(Owner(micro.tokenizer))
    assert frozen.opened
    assert list(models) == [str(micro.gpt), str(micro.reward)]
    ids = micro.tokenizer.encode("the film is good.")
    start = len(micro.tokenizer.encode("the film"))
    cut_off, row = torch.tensor([False]), torch.tensor([0])
    sequences = Sequences(torch.tensor([ids]), torch.tensor([start]), torch.tensor([len(ids)]), cut_off, row)
    letters = len(micro.tokenizer.decode(ids[start:]))
    model = models[str(micro.reward)]
    assert frozen.monitors["letters"](sequences).totals.item() == letters
    expected = 2.0 * model(sequences.tokens, sequences.lengths).item() + 3.0 * letters
    assert frozen.reward(sequences).totals.item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("precision", "half"), [("bf16-mixed", torch.bfloat16), ("16-mixed", torch.float16), ("32-true", torch.float32)]
)
def test_what_autocast_casts_is_kept_in_half_and_says_the_same(micro, precision, half):
    """Bit for bit: else the policy would not be its own reference at the start."""
    folder, tokens = RewardSource(folder=str(micro.reward)), torch.randint(100, (3, 9))
    frozen = Frozen(str(micro.gpt), [folder], {})
    models = frozen.open(Owner(micro.tokenizer, precision=precision))
    whole = load_pretrained(micro.gpt, kind="gpt").eval(), load_pretrained(micro.reward, kind="reward").eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=half, enabled=half != torch.float32):
        for (name, model), exact in zip(models.items(), whole, strict=True):
            assert torch.equal(model.decoder(tokens), exact.decoder(tokens)), name
            kinds = {type(part): p.dtype for part in model.modules() for p in part.parameters(recurse=False)}
            assert kinds.pop(nn.Linear) == half
            assert set(kinds.values()) == {torch.float32}, "embeddings, norms, and the head of a reward"
        lengths = torch.tensor([9, 4, 7])
        assert torch.equal(models[str(micro.reward)](tokens, lengths), whole[1](tokens, lengths))


def test_a_monitor_of_a_folder_is_among_the_models_that_must_fit(micro):
    frozen = Frozen(str(micro.gpt), [LENGTH], {"watched": RewardSource(folder=str(micro.reward))})
    assert list(frozen.open(Owner(micro.tokenizer))) == [str(micro.gpt), str(micro.reward)]
    assert list(frozen.digests) == [REFERENCE, f"function {LENGTH.function}", str(micro.reward)]


def test_a_monitor_reads_with_the_rewards_own_model(micro, sources):
    frozen = Frozen(str(micro.gpt), sources, {"alone": RewardSource(folder=str(micro.reward))})
    frozen.open(Owner(micro.tokenizer))
    (model,), (watched,) = (scorer.models().values() for scorer in (frozen.reward, frozen.monitors["alone"]))
    assert model is watched


def test_reference_and_trunks_take_the_runs_precision_and_keep_their_digests(micro, sources):
    plain, half = (Frozen(str(micro.gpt), sources, {}) for _ in range(2))
    assert plain.digests == {REFERENCE: model_digest(plain.reference)}
    plain.open(Owner(micro.tokenizer))
    half.open(Owner(micro.tokenizer, lambda model: model.to(torch.bfloat16)))
    assert half.digests == plain.digests
    assert {value.dtype for value in half.reference.parameters()} == {torch.bfloat16}
    (reward,) = half.reward.models().values()
    assert {value.dtype for value in reward.decoder.parameters()} == {torch.bfloat16}
    assert reward.bias.dtype == torch.float32


def test_a_reference_that_is_a_policys_base_is_left_as_the_policy_has_it(micro, sources):
    """The same digest as of the folder, whatever precision frozen models take."""
    policy = load_pretrained(micro.gpt, "gpt", embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    add_lora(policy.decoder, LoRAConfig(rank=2))
    frozen, plain = Frozen(str(micro.gpt), sources, {}, base_of(policy)), Frozen(str(micro.gpt), sources, {})
    assert frozen.digests == plain.digests
    frozen.open(Owner(micro.tokenizer, lambda model: model.to(torch.bfloat16)))
    assert frozen.reference.head_weight is policy.head_weight
    assert {value.dtype for value in policy.parameters()} == {torch.float32}
    assert {parameter.requires_grad for parameter in policy.parameters()} == {True, False}


@pytest.mark.parametrize("which", [0, 1])
def test_what_a_checkpoint_was_trained_with_is_compared_on_opening(micro, sources, which):
    before = Frozen(str(micro.gpt), sources, {})
    before.open(Owner(micro.tokenizer))
    name = [REFERENCE, str(micro.reward)][which]
    after = Frozen(str(micro.gpt), sources, {})
    after.recorded = before.digests | {name: "0" * 64}
    with pytest.raises(UserError) as refused:
        after.open(Owner(micro.tokenizer))
    assert str(refused.value).startswith(f"{name}: found another model (SHA-256 {before.digests[name][:12]}…)")
    assert not after.opened
