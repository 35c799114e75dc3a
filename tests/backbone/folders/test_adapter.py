"""Adapters against `peft` on the models of `transformers`."""

import dataclasses
import json
import warnings

import pytest
import torch
from conftest import shaken
from safetensors.torch import load_file

from gpt_modules.backbone import GPT, DecoderConfig, LoRAConfig, RewardModel, add_lora, load_pretrained, save_pretrained
from gpt_modules.backbone.folders.adapter import save_adapter
from gpt_modules.backbone.lora import TARGETS
from gpt_modules.errors import UserError

# Of peft with the newest transformers; not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

SIZES = {"vocab_size": 41, "n_positions": 24, "n_layer": 4, "n_head": 2, "n_embd": 16}
GPT2 = DecoderConfig(**SIZES).without_dropout()
GPT1 = dataclasses.replace(GPT2, norm="post", init="gpt1")
# Heads of 8: the square root, by which their queries differ from ours, is no power of two.
NEO = dataclasses.replace(GPT2, attention=("dense", "banded"), window=5, qkv_bias=False)
FAMILIES = {"gpt2": GPT2, "openai-gpt": GPT1, "gpt_neo": NEO}
TOKENS = torch.randint(41, (3, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def peft():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("peft")


def trained(kind, config, lora, folder):
    """A model in a folder, and the same with updates that have learnt something."""
    torch.manual_seed(0)
    model = kind(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_pretrained(folder, model)
    add_lora(model.decoder, lora)
    for name, parameter in model.named_parameters():
        if "lora_" in name or name.startswith("head"):
            torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("targets", [TARGETS, ("attn.qkv",), ("attn.proj", "mlp.fc")])
def test_peft_opens_it_on_their_language_model(family, targets, tmp_path, transformers, peft):
    lora = LoRAConfig(rank=3, alpha=7.0, targets=targets)
    model = trained(GPT, FAMILIES[family], lora, tmp_path / "base")
    save_adapter(tmp_path / "adapter", model, lora, str(tmp_path / "base"))
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert base.config.model_type == family
    before = base.eval()(TOKENS).logits
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    found, expected = theirs(TOKENS).logits, model(TOKENS)
    assert (expected - before).abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    ours = set(load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    assert ours == set(peft.get_peft_model_state_dict(theirs)), "no tensor of theirs is left as it was drawn"
    theirs.save_pretrained(str(tmp_path / "again"))
    again = load_file(tmp_path / "again" / "adapter_model.safetensors")
    for name, value in load_file(tmp_path / "adapter" / "adapter_model.safetensors").items():
        assert torch.equal(again[name], value)


def test_peft_finds_the_base_by_its_name(tmp_path, transformers, peft):
    lora = LoRAConfig(rank=2)
    model = trained(GPT, GPT2, lora, tmp_path / "base")
    save_adapter(tmp_path / "adapter", model, lora, str(tmp_path / "base"))
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(theirs(TOKENS).logits, model(TOKENS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("begun", [GPT, RewardModel])
def test_their_classifier_gives_our_raw_scores(family, begun, tmp_path, transformers, peft):
    """On the folder of a language model, whose head is drawn anew and then read from the adapter, or of a scorer."""
    lora = LoRAConfig(rank=2)
    trunk = trained(begun, FAMILIES[family], lora, tmp_path / "base")
    model = RewardModel(FAMILIES[family]).eval()
    add_lora(model.decoder, lora)
    model.decoder.load_state_dict(trunk.decoder.state_dict())
    save_adapter(tmp_path / "adapter", model, lora, str(tmp_path / "base"))
    classes = transformers.AutoModelForSequenceClassification
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the head is new
        base = classes.from_pretrained(tmp_path / "base", num_labels=1)
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    base.config.pad_token_id = 0
    rows = TOKENS.clamp(min=1)  # without padding
    expected = model.token_values(rows)[:, -1] - model.head.linear.bias
    torch.testing.assert_close(theirs(rows).logits[:, 0], expected, rtol=0, atol=1e-5)


def test_a_family_that_transformers_lacks_is_refused(tmp_path):
    lora, config = LoRAConfig(rank=2), dataclasses.replace(NEO, qkv_bias=True)
    model = GPT(config)
    add_lora(model.decoder, lora)
    with pytest.raises(UserError, match=r"^the/base: found a decoder that transformers has no class for"):
        save_adapter(tmp_path / "adapter", model, lora, "the/base")
    assert not (tmp_path / "adapter").exists()


def test_a_base_on_this_machine_is_found_from_any_folder(tmp_path, monkeypatch):
    lora = LoRAConfig(rank=2)
    model = GPT(GPT2)
    add_lora(model.decoder, lora)
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    save_adapter(tmp_path / "adapter", model, lora, "base")
    fields = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert fields["base_model_name_or_path"] == str(tmp_path / "base")


def test_an_adapter_is_no_model_folder_and_is_replaced_by_a_later_one_alone(tmp_path):
    lora = LoRAConfig(rank=2)
    model = GPT(GPT2)
    add_lora(shaken(model, 1).decoder, lora)
    save_adapter(tmp_path / "adapter", model, lora, "the/base")
    with pytest.raises(UserError) as refused:
        load_pretrained(tmp_path / "adapter")
    expected = "expected a model: the export beside it has its updates merged"
    assert str(refused.value) == f"{tmp_path / 'adapter'}: found an adapter, {expected}"
    save_adapter(tmp_path / "adapter", model, lora, "another/base")
    fields = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert fields["base_model_name_or_path"] == "another/base"
    (tmp_path / "adapter" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"found notes\.txt"):
        save_adapter(tmp_path / "adapter", model, lora, "the/base")
