"""Our names and layouts of weights beside those of `transformers`: one table, read in both directions.

`transformers` keeps linear layers of these two families as `Conv1D`, whose weight is (in, out): the transpose of ours.
The language-model head is tied to the token embedding and has no tensor of its own in either. Their multiple-choice
head has a bias where the paper has none: one number added to all answers of an example, which no softmax sees. It is
written as 0 and not read.
"""

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gpt_modules.backbone.config import DecoderConfig
from gpt_modules.errors import UserError
from gpt_modules.tasks import Task

Kind = Literal["gpt", "reward", "task"]

_BLOCK_PARTS = (
    ("ln_1", "ln_1", False),
    ("attn.qkv", "attn.c_attn", True),
    ("attn.proj", "attn.c_proj", True),
    ("ln_2", "ln_2", False),
    ("mlp.fc", "mlp.c_fc", True),
    ("mlp.proj", "mlp.c_proj", True),
)
_EMBEDDINGS = {"pre": ("wte", "wpe"), "post": ("tokens_embed", "positions_embed")}
SCORE = "score.weight"
CHOICE = "multiple_choice_head.summary.weight"
_CHOICE_BIAS = "multiple_choice_head.summary.bias"
# Tensors of theirs that no model of ours reads unless its table names them: causal masks of old releases, the
# multiple-choice head of what is opened as a language model, and its bias.
_IGNORED = (".attn.bias", ".attn.masked_bias", ".position_ids", "multiple_choice_head.")


class Entry(NamedTuple):
    """One tensor under both names; `shape` is theirs, `transposed` says that ours is the transpose."""

    ours: str
    theirs: str
    shape: tuple[int, ...]
    transposed: bool


def weight_map(config: DecoderConfig, kind: Kind, task: Task | None = None) -> Iterator[Entry]:
    """Every tensor of a model of this kind; "task" needs its `task`. The scalar head's bias is not among them: theirs
    has none.
    """
    width = config.n_embd
    tokens, positions = _EMBEDDINGS[config.norm]
    yield Entry("decoder.wte.weight", f"transformer.{tokens}.weight", (config.vocab_size, width), False)
    yield Entry("decoder.wpe.weight", f"transformer.{positions}.weight", (config.n_positions, width), False)
    outputs = {"attn.qkv": 3 * width, "mlp.fc": 4 * width}
    inputs = {"mlp.proj": 4 * width}
    for layer in range(config.n_layer):
        for ours, theirs, linear in _BLOCK_PARTS:
            out = outputs.get(ours, width)
            shape = (inputs.get(ours, width), out) if linear else (width,)
            names = f"decoder.blocks.{layer}.{ours}", f"transformer.h.{layer}.{theirs}"
            yield Entry(f"{names[0]}.weight", f"{names[1]}.weight", shape, linear)
            yield Entry(f"{names[0]}.bias", f"{names[1]}.bias", (out,), False)
    if config.norm == "pre":
        yield Entry("decoder.ln_f.weight", "transformer.ln_f.weight", (width,), False)
        yield Entry("decoder.ln_f.bias", "transformer.ln_f.bias", (width,), False)
    if kind == "reward":
        yield Entry("head.linear.weight", SCORE, (1, width), False)
    if task is not None:
        theirs = CHOICE if task.kind == "multiple_choice" else SCORE
        yield Entry("head.linear.weight", theirs, (task.n_outputs, width), False)


def to_transformers(
    state: Mapping[str, Tensor], config: DecoderConfig, kind: Kind, task: Task | None = None
) -> dict[str, Tensor]:
    """Our `state_dict` under their names and in their layout, on the CPU."""
    tensors = {
        entry.theirs: (state[entry.ours].t() if entry.transposed else state[entry.ours]).detach().cpu().contiguous()
        for entry in weight_map(config, kind, task)
    }
    if CHOICE in tensors:
        tensors[_CHOICE_BIAS] = torch.zeros(1, dtype=tensors[CHOICE].dtype)
    return tensors


def from_transformers(
    tensors: Mapping[str, Tensor], config: DecoderConfig, kind: Kind, source: str, task: Task | None = None
) -> dict[str, Tensor]:
    """Their tensors as a `state_dict` of ours, float32, sharing no memory with them.

    Old releases leave out the prefix `transformer.`; some models keep the embedding under the name of the head that is
    tied to it. Raises `UserError`, naming `source` and the tensor, for one that
    is missing, unknown, of another shape, or not finite.
    """
    found = {_full_name(name): tensor for name, tensor in tensors.items()}
    if "lm_head.weight" in found:
        found.setdefault(f"transformer.{_EMBEDDINGS[config.norm][0]}.weight", found["lm_head.weight"])
    state = {}
    for entry in weight_map(config, kind, task):
        tensor = found.pop(entry.theirs, None)
        if tensor is None:
            raise UserError(f"{source}: {entry.theirs}: missing, expected a tensor of shape {list(entry.shape)}")
        if tuple(tensor.shape) != entry.shape:
            shapes = f"found shape {list(tensor.shape)}, expected {list(entry.shape)}"
            raise UserError(f"{source}: {entry.theirs}: {shapes}")
        if not torch.isfinite(tensor).all():
            raise UserError(f"{source}: {entry.theirs}: found NaN or infinite values, expected finite weights")
        tensor = tensor.t() if entry.transposed else tensor
        state[entry.ours] = tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    _check_rest(found, state["decoder.wte.weight"], source)
    return state


def _full_name(name: str) -> str:
    heads = ("transformer.", "lm_head.", "score.", "multiple_choice_head.")
    return name if name.startswith(heads) else f"transformer.{name}"


def _check_rest(rest: Mapping[str, Tensor], embedding: Tensor, source: str) -> None:
    for name, tensor in rest.items():
        if name == "lm_head.weight":
            if not torch.equal(tensor.float(), embedding):
                raise UserError(
                    f"{source}: lm_head.weight: found its own values, expected those of the token embedding"
                )
        elif not any(part in name for part in _IGNORED):
            raise UserError(f"{source}: {name}: unknown tensor, expected none of this name")
