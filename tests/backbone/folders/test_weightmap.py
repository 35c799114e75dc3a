"""The table of names: complete, the same in both directions, and strict about what it is given."""

import pytest
import torch

from gpt_modules.backbone import GPT, DecoderConfig, LabellingModel, RewardModel
from gpt_modules.backbone.folders.weightmap import Kind, from_transformers, to_transformers, weight_map
from gpt_modules.errors import UserError
from gpt_modules.labelling import Labelling

SIZES = {"vocab_size": 31, "n_positions": 12, "n_layer": 2, "n_head": 2, "n_embd": 16}


def make(norm: str, kind: Kind) -> GPT | RewardModel:
    config = DecoderConfig.from_dict({**SIZES, "norm": norm})
    return GPT(config) if kind == "gpt" else RewardModel(config)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize(
    "task", [Labelling("similarity", ("a", "b", "c")), Labelling("multiple_choice"), Labelling("regression")]
)
def test_the_head_of_a_task_comes_back_too(norm: str, task: Labelling) -> None:
    model = LabellingModel(DecoderConfig.from_dict({**SIZES, "norm": norm}), task)
    tensors = to_transformers(model.state_dict(), model.config, "task", task)
    state = from_transformers(tensors, model.config, "task", "here", task)
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_an_embedding_kept_under_the_name_of_the_tied_head(norm: str) -> None:
    model = make(norm, "gpt")
    tensors = to_transformers(model.state_dict(), model.config, "gpt")
    tensors["lm_head.weight"] = tensors.pop(
        "transformer.wte.weight" if norm == "pre" else "transformer.tokens_embed.weight"
    )
    state = from_transformers(tensors, model.config, "gpt", "here")
    assert torch.equal(state["decoder.wte.weight"], model.state_dict()["decoder.wte.weight"])


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("kind", ["gpt", "reward"])
def test_every_parameter_has_one_entry_and_comes_back(norm: str, kind: Kind) -> None:
    model = make(norm, kind)
    entries = list(weight_map(model.config, kind))
    ours = {name for name, _ in model.named_parameters()} - {"head.linear.bias"}
    assert {entry.ours for entry in entries} == ours
    assert len({entry.theirs for entry in entries}) == len(entries) == len(ours)
    state = from_transformers(to_transformers(model.state_dict(), model.config, kind), model.config, kind, "here")
    assert all(torch.equal(state[name], model.state_dict()[name]) for name in ours)


def test_old_names_masks_and_a_tied_head_are_understood() -> None:
    model = make("pre", "gpt")
    tensors = to_transformers(model.state_dict(), model.config, "gpt")
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    old |= {"h.0.attn.bias": torch.ones(1, 1, 12, 12).tril(), "lm_head.weight": tensors["transformer.wte.weight"]}
    state = from_transformers(old, model.config, "gpt", "here")
    assert torch.equal(state["decoder.blocks.1.mlp.fc.weight"], model.state_dict()["decoder.blocks.1.mlp.fc.weight"])


def test_what_is_read_shares_no_memory() -> None:
    model = make("pre", "gpt")
    tensors = to_transformers(model.state_dict(), model.config, "gpt")
    state = from_transformers(tensors, model.config, "gpt", "here")
    assert not {tensor.data_ptr() for tensor in tensors.values()} & {tensor.data_ptr() for tensor in state.values()}
    assert all(tensor.is_contiguous() for tensor in state.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transformer.ln_f.bias": None}, "transformer.ln_f.bias: missing, expected a tensor of shape [16]"),
        (
            {"transformer.h.1.mlp.c_fc.weight": torch.ones(64, 16)},
            "transformer.h.1.mlp.c_fc.weight: found shape [64, 16], expected [16, 64]",
        ),
        (
            {"transformer.ln_f.bias": torch.full((16,), torch.nan)},
            "transformer.ln_f.bias: found NaN or infinite values, expected finite weights",
        ),
        ({"transformer.h.2.ln_1.bias": torch.ones(16)}, "transformer.h.2.ln_1.bias: unknown tensor"),
        ({"lm_head.weight": torch.ones(31, 16)}, "lm_head.weight: found its own values"),
    ],
)
def test_refusals(change: dict[str, torch.Tensor | None], message: str) -> None:
    model = make("pre", "gpt")
    tensors = {**to_transformers(model.state_dict(), model.config, "gpt"), **change}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    with pytest.raises(UserError) as caught:
        from_transformers(kept, model.config, "gpt", "dir/model.safetensors")
    assert str(caught.value).startswith(f"dir/model.safetensors: {message}")


NUMBERS = [
    found for name in dir(torch)
    if name.startswith(("float", "bfloat", "int")) and isinstance(found := getattr(torch, name), torch.dtype)
]  # fmt: skip


@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
def test_numbers_of_every_type_are_read_or_refused_in_a_line(dtype: torch.dtype) -> None:
    model = make("pre", "gpt")
    tensors = to_transformers(model.state_dict(), model.config, "gpt")
    name, wide = "transformer.wte.weight", (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    shape = tensors[name].shape
    tensors[name] = (
        torch.zeros(shape, dtype=torch.uint8).to(dtype) if dtype in wide else torch.empty(shape, dtype=dtype)
    )
    if dtype in wide:
        assert from_transformers(tensors, model.config, "gpt", "here")["decoder.wte.weight"].dtype == torch.float32
    else:
        with pytest.raises(UserError, match=r"found numbers of type (float|int).*, expected floating-point weights"):
            from_transformers(tensors, model.config, "gpt", "here")
