"""GPT-Neo exchanged with `transformers` in both directions, and models that it must not open for something else."""

import dataclasses
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from gpt_modules.backbone import (
    GPT,
    DecoderConfig,
    LabellingModel,
    RewardModel,
    generate,
    load_pretrained,
    read_config,
    save_pretrained,
)
from gpt_modules.errors import UserError
from gpt_modules.labelling import Labelling

# Heads of 8: the square root, by which their queries differ from ours, is no power of two.
NEO = DecoderConfig(
    vocab_size=41, n_positions=24, n_layer=4, n_head=2, n_embd=16, attention=("dense", "banded"), window=5,
    qkv_bias=False,
)  # fmt: skip
TOKENS = torch.randint(41, (3, 20), generator=torch.Generator().manual_seed(0))
THEIR_SIZES = {"vocab_size": 41, "max_position_embeddings": 24, "num_layers": 4, "num_heads": 2, "hidden_size": 16}


def perturb(model: Any) -> Any:
    """Biases and layer norms start at 0 and 1, where a mistake in them would not show."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(found, expected, rtol=0, atol=1e-5)


PATTERNS = [("dense", "banded"), ("banded",), ("banded", "dense", "dense"), ("dense",)]


@pytest.mark.parametrize("attention", PATTERNS, ids="-".join)
def test_their_model_opens_ours(attention: Any, tmp_path: Path, transformers: ModuleType) -> None:
    model = perturb(GPT(dataclasses.replace(NEO, attention=attention)))
    save_pretrained(tmp_path / "m", model)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    assert type(theirs).__name__ == "GPTNeoForCausalLM"
    assert close(model(TOKENS), theirs(TOKENS).logits)


@pytest.mark.parametrize(
    "types", [[[["global", "local"], 2]], [[["local"], 4]], [[["global"], 1], [["local", "global", "local"], 1]]]
)
def test_we_open_their_model(types: Any, tmp_path: Path, transformers: ModuleType) -> None:
    config = transformers.GPTNeoConfig(**THEIR_SIZES, attention_types=types, window_size=5, attention_dropout=0.2)
    theirs = perturb(transformers.GPTNeoForCausalLM(config))
    theirs.save_pretrained(tmp_path)
    model = load_pretrained(tmp_path, "gpt").eval()
    assert close(model(TOKENS), theirs(TOKENS).logits)
    assert (model.config.window, model.config.qkv_bias, model.config.attn_pdrop) == (5, False, 0.2)
    answer = theirs.generate(
        TOKENS[:, :8], attention_mask=torch.ones(3, 8), max_new_tokens=12, do_sample=False, pad_token_id=0,
        eos_token_id=None,
    )  # fmt: skip
    found = generate(model, TOKENS[:, :8].tolist(), max_new_tokens=12, eos_id=None, temperature=0.0)
    assert torch.equal(found.tokens, answer[:, 8:])


def test_their_classifier_gives_our_raw_scores_and_back(tmp_path: Path, transformers: ModuleType) -> None:
    model = perturb(RewardModel(NEO))
    save_pretrained(tmp_path / "m", model)
    theirs = transformers.GPTNeoForSequenceClassification.from_pretrained(tmp_path / "m").eval()
    raw = model.token_values(TOKENS)[:, -1] - model.head.linear.bias
    assert close(raw, torch.cat([theirs(row[None]).logits[:, 0] for row in TOKENS]))
    theirs.save_pretrained(tmp_path / "t")
    assert close(load_pretrained(tmp_path / "t", "reward").eval().token_values(TOKENS), model.token_values(TOKENS))


def test_a_released_folder_of_old_opens(tmp_path: Path, transformers: ModuleType) -> None:
    model = perturb(GPT(NEO))
    save_pretrained(tmp_path / "m", model)
    document = json.loads((tmp_path / "m" / "config.json").read_text())
    layers = [["global", "local"][layer % 2] for layer in range(4)]
    document |= {"attention_layers": layers, "transformers_version": "4.9.0.dev0", "gpt_modules": {}}
    theirs = transformers.GPTNeoForCausalLM.from_pretrained(tmp_path / "m").state_dict()
    theirs |= {f"transformer.h.{n}.attn.attention.bias": torch.ones(1, 1, 24, 24).tril() for n in range(4)}
    theirs |= {f"transformer.h.{n}.attn.attention.masked_bias": torch.tensor(-1e9) for n in range(4)}
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text(json.dumps(document))
    torch.save(theirs, tmp_path / "old" / "pytorch_model.bin")
    assert close(load_pretrained(tmp_path / "old", "gpt").eval()(TOKENS), model(TOKENS))


BIASED = dataclasses.replace(NEO, qkv_bias=True)
FOREIGN = [
    (GPT, BIASED),
    (RewardModel, BIASED),
    (GPT, dataclasses.replace(NEO, norm="post", init="gpt1")),
    (GPT, dataclasses.replace(BIASED, norm="post", attention=("banded", "dense", "dense"))),
]


@pytest.mark.parametrize(("kind", "config"), FOREIGN)
def test_what_they_have_no_class_for_they_refuse_and_we_open(
    kind: Any, config: DecoderConfig, tmp_path: Path, transformers: ModuleType
) -> None:
    model = perturb(kind(config))
    save_pretrained(tmp_path / "m", model, extra={"step": 7})
    for auto in (transformers.AutoConfig, transformers.AutoModel, transformers.AutoModelForCausalLM):
        with pytest.raises(ValueError, match="gpt_modules"):
            auto.from_pretrained(tmp_path / "m")
    again = load_pretrained(tmp_path / "m")
    assert type(again) is kind
    assert again.config == config == read_config(tmp_path / "m")
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())


def test_multiple_choice_has_no_head_of_theirs_in_this_family(tmp_path: Path) -> None:
    model = perturb(LabellingModel(NEO, Labelling("multiple_choice")))
    save_pretrained(tmp_path / "m", model)
    assert json.loads((tmp_path / "m" / "config.json").read_text())["model_type"] == "gpt_modules"
    lengths, index = torch.tensor([20, 7, 9]), torch.tensor([[0, 1, 2]])
    again = load_pretrained(tmp_path / "m", "task").eval()
    assert torch.equal(again(TOKENS, lengths, index), model(TOKENS, lengths, index))


def test_a_dense_model_opens_with_a_band(tmp_path: Path) -> None:
    model = perturb(GPT(dataclasses.replace(BIASED, attention=("dense",))))
    save_pretrained(tmp_path / "m", model)
    banded = load_pretrained(tmp_path / "m", "gpt", attention=["banded"], window=5).eval()
    assert close(banded(TOKENS[:, :5]), model(TOKENS[:, :5]))
    assert not close(banded(TOKENS), model(TOKENS))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention_types": [[["global"], 3]]}, "attention_types: found 3 layers, expected num_layers = 4"),
        ({"attention_types": [[["sparse"], 4]]}, "attention_types: found [['sparse'], 4], expected [[\"global\", "),
        ({"attention_types": "global"}, 'attention_types: found \'global\', expected [["global", "local"], number'),
        ({"attention_types": []}, "attention: found [], expected a list of dense and banded"),
        ({"window_size": 0}, "window_size: found 0, expected a whole number of at least 1"),
        ({"intermediate_size": 65}, "intermediate_size: found 65, expected 4 x hidden_size"),
        ({"activation_function": "gelu"}, "activation_function: found 'gelu', expected 'gelu_new'"),
    ],
)
def test_a_configuration_that_does_not_fit(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_pretrained(tmp_path / "m", GPT(NEO))
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    with pytest.raises(UserError) as caught:
        read_config(tmp_path / "m")
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_biases_that_the_family_does_not_have_cannot_be_asked_for(tmp_path: Path) -> None:
    save_pretrained(tmp_path / "m", GPT(NEO))
    with pytest.raises(UserError, match=r"model\.safetensors: qkv_bias: found true, expected false"):
        load_pretrained(tmp_path / "m", "gpt", qkv_bias=True)
