"""Folders exchanged with `transformers` in both directions, and every way in which a folder can be wrong."""

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import chats
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from gpt_modules.backbone import (
    GPT,
    DecoderConfig,
    RewardModel,
    generate,
    load_pretrained,
    read_config,
    read_extra,
    save_pretrained,
)
from gpt_modules.backbone.folders import pretrained
from gpt_modules.data.rows.chat import encode_conversation
from gpt_modules.data.text import tokenizers as ours_of
from gpt_modules.data.text.chat_template import ChatTemplate
from gpt_modules.errors import UserError

SIZES = {"vocab_size": 41, "n_positions": 16, "n_layer": 2, "n_head": 2, "n_embd": 16}
TOKENS = torch.randint(41, (3, 11), generator=torch.Generator().manual_seed(0))
FAMILIES = {
    "pre": ("GPT2Config", "GPT2LMHeadModel", "GPT2ForSequenceClassification"),
    "post": ("OpenAIGPTConfig", "OpenAIGPTLMHeadModel", "OpenAIGPTForSequenceClassification"),
}


def perturb(model: Any) -> Any:
    """Biases and layer norms start at 0 and 1, where a mistake in them would not show."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def gpt(norm: str = "pre") -> GPT:
    init = "gpt2" if norm == "pre" else "gpt1"
    model: GPT = perturb(GPT(DecoderConfig.from_dict({**SIZES, "norm": norm, "init": init})))
    return model


def reward(norm: str = "pre") -> RewardModel:
    model: RewardModel = perturb(RewardModel(gpt(norm).config))
    model.bias.fill_(-0.3)
    model.scale.fill_(1.7)
    return model


def tokenizer_json() -> str:
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.add_special_tokens(["<|endoftext|>"])
    text: str = tokenizer.to_str()
    return text


def max_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return (found - expected).abs().max().item()


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_their_language_model_opens_our_folder(norm: str, tmp_path: Path, transformers: ModuleType) -> None:
    model = gpt(norm)
    save_pretrained(tmp_path / "m", model)
    theirs = getattr(transformers, FAMILIES[norm][1]).from_pretrained(tmp_path / "m").eval()
    assert max_difference(model(TOKENS), theirs(TOKENS).logits) < 1e-5
    assert (
        max_difference(model(TOKENS), transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")(TOKENS).logits)
        < 1e-5
    )


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_we_open_their_language_model(norm: str, tmp_path: Path, transformers: ModuleType) -> None:
    config, language_model, _ = FAMILIES[norm]
    theirs = perturb(getattr(transformers, language_model)(getattr(transformers, config)(**SIZES)))
    theirs.save_pretrained(tmp_path)
    model = load_pretrained(tmp_path, "gpt")
    assert max_difference(model.eval()(TOKENS), theirs(TOKENS).logits) < 1e-5
    assert (model.config.norm, model.config.init) == (norm, "gpt2" if norm == "pre" else "gpt1")


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_their_classifier_gives_our_raw_scores(norm: str, tmp_path: Path, transformers: ModuleType) -> None:
    model = reward(norm)
    save_pretrained(tmp_path / "m", model)
    theirs = getattr(transformers, FAMILIES[norm][2]).from_pretrained(tmp_path / "m").eval()
    assert theirs.config.num_labels == 1
    raw = model.token_values(TOKENS)[:, -1] - model.head.linear.bias
    answers = torch.cat([theirs(row[None]).logits[:, 0] for row in TOKENS])  # one by one: no padding token, no batches
    assert max_difference(raw, answers) < 1e-5


def test_we_open_their_classifier(tmp_path: Path, transformers: ModuleType) -> None:
    theirs = perturb(transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**SIZES, num_labels=1)))
    theirs.save_pretrained(tmp_path)
    model = load_pretrained(tmp_path, "reward").eval()
    assert max_difference(model(TOKENS[:1], torch.tensor([11])), theirs(TOKENS[:1]).logits[:, 0]) < 1e-5


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("make", [gpt, reward])
def test_our_folder_comes_back_exactly(norm: str, make: Any, tmp_path: Path) -> None:
    model = make(norm)
    save_pretrained(tmp_path / "m", model, extra={"step": 7})
    again = load_pretrained(tmp_path / "m")
    assert type(again) is type(model)
    assert again.config == model.config == read_config(tmp_path / "m")
    assert read_extra(tmp_path / "m") == {"step": 7}
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    assert all(parameter.requires_grad for parameter in again.parameters())


def test_the_released_gpt1_opens(tmp_path: Path) -> None:
    model = gpt("post")
    tensors = pretrained.to_transformers(model.state_dict(), model.config, "gpt")
    # As on the hub: no prefix, causal masks among the weights, fields of the time, sizes left to be known.
    released = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    released |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 16, 16).tril() for layer in range(2)}
    fields = {"model_type": "openai-gpt", "afn": "gelu", "architectures": ["OpenAIGPTLMHeadModel"], "n_ctx": 16}
    fields |= {"n_special": 0, "predict_special_tokens": True, "summary_type": "cls_index", "summary_use_proj": True}
    (tmp_path / "config.json").write_text(json.dumps({**SIZES, **fields}))
    torch.save(released, tmp_path / "pytorch_model.bin")
    for kind in ("gpt", None):
        assert torch.equal(load_pretrained(tmp_path, kind).eval()(TOKENS), model(TOKENS))
    (tmp_path / "pytorch_model.bin").unlink()
    save_file(released, tmp_path / "model.safetensors")
    assert torch.equal(load_pretrained(tmp_path, "gpt").eval()(TOKENS), model(TOKENS))


def test_the_original_release_opens(tmp_path: Path) -> None:
    model = gpt("post")
    state, parts = model.state_dict(), ["decoder.wpe.weight", "decoder.wte.weight"]
    names = [f"{name}.{kind}" for name in ("attn.qkv", "attn.proj", "ln_1", "mlp.fc", "mlp.proj", "ln_2")
             for kind in ("weight", "bias")]  # fmt: skip
    parts += [f"decoder.blocks.{layer}.{name}" for layer in range(2) for name in names]
    # Their linear layers are convolutions, (1, in, out).
    linear = [name.split(".")[-2] in ("qkv", "proj", "fc") and name.endswith("weight") for name in parts]
    arrays = [state[name].T[None] if conv else state[name] for name, conv in zip(parts, linear, strict=True)]
    (tmp_path / "params_shapes.json").write_text(json.dumps([list(array.shape) for array in arrays]))
    np.save(tmp_path / "params_0.npy", torch.cat([array.flatten() for array in arrays]).numpy())
    for kind in ("gpt", None):
        opened = load_pretrained(tmp_path, kind, n_head=2).eval()  # no file says how many heads there are
        assert max_difference(opened(TOKENS), model(TOKENS)) < 1e-6
    assert read_config(tmp_path).n_embd == 16
    assert read_extra(tmp_path) == {}
    with pytest.raises(UserError, match=r"found a model of kind 'gpt', expected 'task'$"):
        load_pretrained(tmp_path, "task")


def test_a_loaded_model_can_be_trained_and_speaks(tmp_path: Path) -> None:
    save_pretrained(tmp_path / "m", gpt())
    model = load_pretrained(tmp_path / "m", "gpt", attn_pdrop=0.0)
    assert (model.config.attn_pdrop, model.config.resid_pdrop) == (0.0, 0.1)
    model(TOKENS).sum().backward()
    assert model.head_weight.grad is not None
    assert generate(model, [[1]], max_new_tokens=3, eos_id=None).mask.all()


def test_names_are_clean_after_compiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = gpt()
    for block in model.decoder.blocks:
        block.compile(backend="eager")
    save_pretrained(tmp_path / "m", model)
    assert load_pretrained(tmp_path / "m").state_dict().keys() == gpt().state_dict().keys()


def test_the_tokenizer_travels_and_opens(tmp_path: Path, transformers: ModuleType) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer_json())
    save_pretrained(tmp_path / "text", gpt(), tokenizer_json=tokenizer_json())
    save_pretrained(tmp_path / "file", gpt(), tokenizer_file=tmp_path / "tokenizer.json")
    for folder in (tmp_path / "text", tmp_path / "file"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        assert tokenizer("cab").input_ids == [2, 0, 1]
        assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|endoftext|>", 26)
        assert transformers.AutoConfig.from_pretrained(folder).eos_token_id == 26


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    small = GPT(DecoderConfig.from_dict({**SIZES, "vocab_size": 20}))
    with pytest.raises(UserError, match=r"^tokenizer: found ids up to 26, expected less than vocab_size = 20$"):
        save_pretrained(tmp_path / "m", small, tokenizer_json=tokenizer_json())
    assert not (tmp_path / "m").exists()


def test_a_save_cut_off_leaves_the_folder_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = gpt()
    save_pretrained(tmp_path / "m", model)

    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrained, "_write_json", cut_off)
    with pytest.raises(KeyboardInterrupt):
        save_pretrained(tmp_path / "m", gpt())
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert torch.equal(load_pretrained(tmp_path / "m", "gpt").head_weight, model.head_weight)


@pytest.mark.parametrize("where", [8, -1])
def test_one_flipped_bit_is_refused(where: int, tmp_path: Path) -> None:
    save_pretrained(tmp_path / "m", gpt())
    path = tmp_path / "m" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors: damaged: found SHA-256 \w{12}…, expected \w{12}…$"):
        load_pretrained(tmp_path / "m")


def test_a_truncated_file_without_a_checksum_is_refused(tmp_path: Path) -> None:
    folder = altered(tmp_path, gpt_modules={})
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors: not a readable safetensors file: "):
        load_pretrained(folder)


def altered(tmp_path: Path, **fields: Any) -> Path:
    folder = tmp_path / "m"
    save_pretrained(folder, gpt())
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**document, **fields}))
    return folder


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model_type": "bloom"},
            "config.json: model_type: found 'bloom', expected one of gpt2, openai-gpt, gpt_neo, "
            "gpt_neox, opt, llama, mistral, qwen2, qwen3, gpt_modules",
        ),
        ({"activation_function": "relu"}, "config.json: activation_function: found 'relu', expected 'gelu_new'"),
        ({"n_inner": 99}, "config.json: n_inner: found 99, expected 4 x n_embd"),
        ({"n_head": 3}, "config.json: n_embd: found 16, expected a multiple of n_head (3)"),
        ({"tie_word_embeddings": False}, "config.json: tie_word_embeddings: found False, expected True"),
        ({"vocab_size": 40}, "model.safetensors: transformer.wte.weight: found shape [41, 16], expected [40, 16]"),
        ({"n_layer": 3}, "model.safetensors: transformer.h.2.ln_1.weight: missing, expected a tensor of shape [16]"),
        ({"n_layer": 1}, "model.safetensors: transformer.h.1.attn.c_attn.bias: unknown tensor, expected none"),
        ({"gpt_modules": {"format_version": 9}}, "config.json: gpt_modules.format_version: found 9, expected 1"),
        ({"gpt_modules": []}, "config.json: gpt_modules: found [], expected a mapping of keys"),
    ],
)
def test_a_configuration_that_does_not_fit(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = altered(tmp_path, **fields)
    with pytest.raises(UserError) as caught:
        load_pretrained(folder)
    assert str(caught.value).startswith(f"{folder}/{message}")
    assert "\n" not in str(caught.value)


def test_the_wrong_kind_of_model(tmp_path: Path) -> None:
    save_pretrained(tmp_path / "m", reward())
    with pytest.raises(UserError, match=r"m: found a model of kind 'reward', expected 'gpt'$"):
        load_pretrained(tmp_path / "m", "gpt")


def test_missing_files_and_broken_json(tmp_path: Path) -> None:
    folder = altered(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: no such file, expected the weights of a model$"):
        load_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json:1: found broken JSON "):
        load_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json: no such file, expected the configuration of a model$"):
        load_pretrained(folder)


def test_numbers_of_a_score_must_be_finite(tmp_path: Path) -> None:
    save_pretrained(tmp_path / "m", reward())
    path = tmp_path / "m" / "config.json"
    document = json.loads(path.read_text())
    document["gpt_modules"]["scale"] = "much"
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"gpt_modules\.scale: found 'much', expected a number$"):
        load_pretrained(tmp_path / "m")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('executed')",))


def test_pickled_weights_are_data_only(tmp_path: Path) -> None:
    folder = altered(tmp_path, gpt_modules={})
    (folder / "model.safetensors").unlink()
    model = gpt()
    torch.save(pretrained.to_transformers(model.state_dict(), model.config, "gpt"), folder / "pytorch_model.bin")
    assert torch.equal(load_pretrained(folder, "gpt").head_weight, model.head_weight)
    torch.save({"transformer.wte.weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: not a file of plain weights: found other things, expe"):
        load_pretrained(folder)


@pytest.mark.parametrize("change", ["renamed", "another part", "no part", "a path", "no map"])
def test_an_index_that_does_not_fit_names_the_tensor_or_the_file(
    change, tmp_path: Path, transformers: ModuleType
) -> None:
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES))
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    index = tmp_path / "model.safetensors.index.json"
    load_pretrained(tmp_path)
    document = json.loads(index.read_text())
    where = document["weight_map"]
    first, part = next(iter(where.items()))
    other = next(name for name in where.values() if name != part)
    if change == "renamed":
        where["z" * 500] = where.pop(first)
    document["weight_map"] = {
        "another part": {**where, first: other}, "no part": {**where, first: "none.safetensors"},
        "a path": {**where, first: "../a"}, "no map": [],
    }.get(change, where)  # fmt: skip
    index.write_text(json.dumps(document))
    message = {
        "renamed": "…: missing, expected the tensor that", "another part": f"{other}: {first}: missing, expected the",
        "no part": "none.safetensors: not a readable", "a path": "found '../a', expected the name of a file, no path",
        "no map": r"weight_map: found [], expected a mapping of keys",
    }[change]  # fmt: skip
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load_pretrained(tmp_path)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("fields", [{"n_head": 4}, {"layer_norm_epsilon": 0.1}, {"attn_pdrop": 0.0}])
def test_a_configuration_altered_since_its_export_is_not_opened(fields: dict[str, Any], tmp_path: Path) -> None:
    folder = altered(tmp_path, **fields)  # the weights fit it all the same
    for read in (load_pretrained, read_config):
        with pytest.raises(
            UserError, match=r"m/config\.json: found altered since it was exported, expected it as it was"
        ):
            read(folder)
    document = json.loads((folder / "config.json").read_text())
    del document["gpt_modules"]["config_sha256"]  # as folders of earlier versions are
    (folder / "config.json").write_text(json.dumps(document))
    assert load_pretrained(folder).config.to_dict().items() >= fields.items()


@pytest.mark.parametrize("name", ["head_bias", "bias", "scale"])
def test_a_number_of_a_reward_model_altered_since_its_export_is_not_opened(name: str, tmp_path: Path) -> None:
    save_pretrained(tmp_path / "m", reward(), extra={"step": 7})
    path = tmp_path / "m" / "config.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document, sort_keys=True))  # laid out anew: the same values
    assert load_pretrained(tmp_path / "m", "reward").scale == torch.tensor(1.7)
    path.write_text(json.dumps({**document, "gpt_modules": {**document["gpt_modules"], name: 0.5}}))
    with pytest.raises(UserError, match=r"config\.json: found altered since it was exported"):
        load_pretrained(tmp_path / "m")


def test_weights_of_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    save_pretrained(tmp_path / "m", gpt())
    tensors = {name: value.to(torch.int32) for name, value in load_file(tmp_path / "m" / "model.safetensors").items()}
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    document = json.loads((tmp_path / "m" / "config.json").read_text())
    del document["gpt_modules"]
    (tmp_path / "m" / "config.json").write_text(json.dumps(document))
    with pytest.raises(
        UserError, match=r"wte\.weight: found numbers of type int32, expected floating-point weights of 16 bits"
    ):
        load_pretrained(tmp_path / "m")


@pytest.mark.parametrize("pad", ["<pad>", "</s>", None])
def test_a_token_to_pad_with_is_kept_unless_it_is_an_end(tmp_path: Path, pad: str | None) -> None:
    """Their classifier scores the last token that is none to pad with; an answer's last token is its end."""
    from transformers import AutoModelForSequenceClassification

    backend = chats.byte_level()
    backend.add_special_tokens(["<pad>"])
    names = (("eos_token", "</s>"), *([] if pad is None else [("pad_token", pad)]))
    tokenizer = ours_of.Tokenizer(backend, "</s>", ChatTemplate(names=names))
    model = RewardModel(DecoderConfig(vocab_size=tokenizer.vocab_size, n_positions=16, n_layer=1, n_head=1, n_embd=8))
    torch.nn.init.normal_(model.head.linear.weight)
    save_pretrained(tmp_path / "m", model.eval(), tokenizer_json=tokenizer.to_json(), chat=tokenizer.chat_files())
    kept = backend.token_to_id("<pad>") if pad == "<pad>" else None
    said, generation = (
        json.loads((tmp_path / "m" / name).read_text()) for name in ("config.json", "generation_config.json")
    )
    assert (said["pad_token_id"], said["eos_token_id"]) == (kept, tokenizer.eos_id)
    assert generation.get("pad_token_id") == kept
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "m").eval()
    rows = [[*tokenizer.encode("ab"), tokenizer.eos_id], [*tokenizer.encode("abcdef"), tokenizer.eos_id]]
    ours = [model.token_values(torch.tensor([row]))[0, -1] - model.head.linear.bias[0] for row in rows]
    batch = torch.tensor([row + [kept or 0] * (len(rows[1]) - len(row)) for row in rows])
    if kept is None:
        with pytest.raises(ValueError, match="padding"):
            theirs(batch)
    else:
        assert torch.allclose(theirs(batch).logits[:, 0], torch.stack(ours), atol=1e-6)


@pytest.mark.parametrize("template", ["ours", "chatml", "llama3"])
def test_a_folder_talks_in_transformers_as_here(tmp_path: Path, template: str) -> None:
    from transformers import AutoTokenizer

    names = () if template == "ours" else tuple(chats.NAMES.items())
    tokenizer = ours_of.Tokenizer(chats.byte_level(), "</s>", ChatTemplate(chats.TEMPLATES[template], names))
    small = GPT(DecoderConfig(vocab_size=tokenizer.vocab_size, n_positions=16, n_layer=1, n_head=1, n_embd=8))
    save_pretrained(tmp_path / "m", small, tokenizer_json=tokenizer.to_json(), chat=tokenizer.chat_files())
    ours, theirs = ours_of.Tokenizer.load(tmp_path / "m"), AutoTokenizer.from_pretrained(tmp_path / "m")
    assert ours.end_ids == tokenizer.end_ids
    for messages in chats.conversations([*chats.PLAIN, chats.THINKING]):
        found = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert found == encode_conversation(messages, ours) == encode_conversation(messages, tokenizer)
