"""The inner loop that travels with meta-learned weights: exact there and back, unseen by others, never a wrong one."""

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt_modules.backbone import GPT, DecoderConfig, LabellingModel, load_pretrained, save_pretrained
from gpt_modules.backbone.folders import pretrained
from gpt_modules.backbone.folders.inner_rates import InnerRates, load_inner_rates
from gpt_modules.errors import UserError
from gpt_modules.labelling import Labelling
from gpt_modules.storage.digests import sha256_of

QKV, HEAD = "decoder.blocks.0.attn.qkv.weight", "head.linear.weight"
TOKENS = torch.arange(12).reshape(2, 6)


def config(**changes: Any) -> DecoderConfig:
    sizes = {"vocab_size": 41, "n_positions": 16, "n_layer": 1, "n_head": 2, "n_embd": 16}
    return DecoderConfig.from_dict({**sizes, **changes})


def meta_sgd(model: torch.nn.Module) -> InnerRates:
    """A rate an element, all different; the queries' weight is stored transposed beside it."""
    rates = {name: torch.rand(1, *value.shape) for name, value in model.named_parameters()}
    return InnerRates("maml", 3, rates)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize(
    "attention", [{}, {"attention": ["dense", "banded"], "window": 4, "qkv_bias": False, "n_layer": 2}]
)
def test_rates_come_back_exactly(norm: str, attention: dict[str, Any], tmp_path: Path) -> None:
    model = GPT(config(norm=norm, **attention))
    given = meta_sgd(model)
    save_pretrained(tmp_path / "m", model, inner_rates=given)
    found = load_inner_rates(tmp_path / "m")
    assert found is not None
    assert (found.algorithm, found.steps, found.rates.keys()) == ("maml", 3, given.rates.keys())
    assert all(torch.equal(rate, given.rates[name]) for name, rate in found.rates.items())


def test_one_tensor_for_several_names_and_the_head_alone(tmp_path: Path) -> None:
    per_step = torch.tensor([0.1, 0.05], dtype=torch.float64, requires_grad=True)
    save_pretrained(
        tmp_path / "m",
        GPT(config()),
        inner_rates=InnerRates("fomaml", 2, {QKV: per_step, "decoder.ln_f.bias": per_step}),
    )
    found = load_inner_rates(tmp_path / "m")
    assert found is not None
    assert {name: rate.tolist() for name, rate in found.rates.items()} == {
        name: pytest.approx([0.1, 0.05]) for name in (QKV, "decoder.ln_f.bias")
    }
    task = LabellingModel(config(), Labelling("classification", ("no", "yes")))
    save_pretrained(tmp_path / "t", task, inner_rates=InnerRates("maml", 5, {HEAD: torch.ones(1, 2, 16)}))
    found = load_inner_rates(tmp_path / "t")
    assert found is not None
    assert found.rates.keys() == {HEAD}


def test_transformers_opens_the_folder_and_its_own_has_no_rates(tmp_path: Path, transformers: ModuleType) -> None:
    model = GPT(config()).eval()
    save_pretrained(tmp_path / "m", model, inner_rates=meta_sgd(model))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    assert (model(TOKENS) - theirs(TOKENS).logits).abs().max() < 1e-5
    theirs.save_pretrained(tmp_path / "theirs")
    assert load_inner_rates(tmp_path / "theirs") is None


def test_a_model_without_rates_takes_the_place_of_one_that_had_them(tmp_path: Path) -> None:
    model = GPT(config())
    save_pretrained(tmp_path / "m", model, inner_rates=meta_sgd(model))
    save_pretrained(tmp_path / "m", model)
    assert load_inner_rates(tmp_path / "m") is None
    assert not (tmp_path / "m" / "inner_rates.safetensors").exists()


def test_a_save_cut_off_leaves_model_and_rates_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = GPT(config())
    save_pretrained(tmp_path / "m", model, inner_rates=InnerRates("maml", 1, {QKV: torch.ones(1)}))
    monkeypatch.setattr(pretrained, "_write_json", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_pretrained(tmp_path / "m", GPT(config()), inner_rates=meta_sgd(model))
    found = load_inner_rates(tmp_path / "m")
    assert found is not None
    assert found.rates == {QKV: torch.ones(1)}
    assert torch.equal(load_pretrained(tmp_path / "m", "gpt").head_weight, model.head_weight)


def test_what_is_no_inner_loop_is_the_programmers_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="steps: found -1, expected at least 0"):
        InnerRates("maml", -1, {})
    model = GPT(config())
    for name, rate in (("no.such", torch.ones(1)), (QKV, torch.ones(1, 2)), (QKV, torch.tensor(1.0))):
        with pytest.raises(ValueError, match=f"inner rates: {name}: "):
            save_pretrained(tmp_path / "m", model, inner_rates=InnerRates("maml", 1, {name: rate}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("tensors", "fields", "message"),
    [
        ({"no.such": torch.ones(1)}, {}, "no.such: unknown parameter, expected the name of one of the model's"),
        ({QKV: torch.ones(1, 16, 48)}, {}, f"{QKV}: found shape [1, 16, 48], expected [S] or [S, 48, 16]"),
        ({QKV: torch.ones(0)}, {}, f"{QKV}: found shape [0], expected [S] or [S, 48, 16]"),
        ({QKV: torch.tensor([float("nan")])}, {}, f"{QKV}: found NaN or infinite values, expected finite rates"),
        ({}, {"steps": "-1"}, "steps: found '-1', expected a whole number from 0"),
        ({}, {"algorithm": "exec"}, "algorithm: found 'exec', expected one of maml, fomaml, reptile"),
    ],
)
def test_rates_that_do_not_fit(
    tensors: dict[str, torch.Tensor], fields: dict[str, str], message: str, tmp_path: Path
) -> None:
    model = GPT(config())
    save_pretrained(tmp_path / "m", model, inner_rates=InnerRates("maml", 1, {QKV: torch.ones(1)}))
    path, document = tmp_path / "m" / "inner_rates.safetensors", tmp_path / "m" / "config.json"
    before = sha256_of(path)
    save_file({**load_file(path), **tensors}, path, metadata={"algorithm": "maml", "steps": "1", **fields})
    document.write_text(document.read_text().replace(before, sha256_of(path)))
    with pytest.raises(UserError, match=f"^{re.escape(f'{path}: {message}')}$"):
        load_inner_rates(tmp_path / "m")
    assert load_pretrained(tmp_path / "m").config == model.config


def test_damaged_missing_or_no_file_of_tensors(tmp_path: Path) -> None:
    save_pretrained(tmp_path / "m", GPT(config()), inner_rates=InnerRates("maml", 1, {QKV: torch.ones(1)}))
    path = tmp_path / "m" / "inner_rates.safetensors"
    path.write_bytes(b"?" + path.read_bytes()[1:])
    with pytest.raises(UserError, match=r"damaged: found SHA-256 \w{12}…, expected \w{12}…$"):
        load_inner_rates(tmp_path / "m")
    document = json.loads((tmp_path / "m" / "config.json").read_text())
    document["gpt_modules"]["inner_rates_sha256"] = sha256_of(path)
    (tmp_path / "m" / "config.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match="not a readable safetensors file: "):
        load_inner_rates(tmp_path / "m")
    path.unlink()
    with pytest.raises(UserError, match=r"no such file, expected the inner rates that config\.json tells of$"):
        load_inner_rates(tmp_path / "m")
