"""Our names and layouts of weights beside those of `transformers`: one table, read in both directions.

`transformers` keeps linear layers of GPT-1 and GPT-2 as `Conv1D`, whose weight is (in, out): the transpose of ours.
Elsewhere they lie as ours do; queries, keys and values, and the two halves of a gated layer, are matrices of their own,
but for GPT-NeoX, which has a head's queries, keys and values together. In a folder of the family gpt_modules, names and
layouts are ours. A language-model head that is tied to the token embedding has no tensor of its own anywhere. Their
multiple-choice head has a bias where the paper has none: one number added to all answers of an example, which no
softmax sees. It is written as 0 and not read.
"""

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gpt_modules.backbone.config import DecoderConfig
from gpt_modules.backbone.folders.model_families import Family, family_of
from gpt_modules.errors import UserError
from gpt_modules.labelling import Labelling
from gpt_modules.storage.documents import at

Kind = Literal["gpt", "reward", "task"]
# Of a block's module, theirs: several where ours is those on top of one another.
Block = Mapping[str, str | tuple[str, ...]]

_GPT_BLOCK = {
    "ln_1": "ln_1",
    "attn.qkv": "attn.c_attn",
    "attn.proj": "attn.c_proj",
    "ln_2": "ln_2",
    "mlp.fc": "mlp.c_fc",
    "mlp.proj": "mlp.c_proj",
}
_SEPARATE = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_LLAMA_BLOCK: Block = {
    "ln_1": "input_layernorm",
    "attn.qkv": _SEPARATE,
    "attn.q_norm": "self_attn.q_norm",
    "attn.k_norm": "self_attn.k_norm",
    "attn.proj": "self_attn.o_proj",
    "ln_2": "post_attention_layernorm",
    "mlp.fc": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.proj": "mlp.down_proj",
}
_BLOCKS: dict[Family, Block] = {
    "gpt2": _GPT_BLOCK,
    "openai-gpt": _GPT_BLOCK,
    "gpt_neo": {
        **_GPT_BLOCK,
        "attn.qkv": ("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"),
        "attn.proj": "attn.attention.out_proj",
    },
    "gpt_neox": {
        "ln_1": "input_layernorm",
        "attn.qkv": "attention.query_key_value",
        "attn.proj": "attention.dense",
        "ln_2": "post_attention_layernorm",
        "mlp.fc": "mlp.dense_h_to_4h",
        "mlp.proj": "mlp.dense_4h_to_h",
    },
    "opt": {
        "ln_1": "self_attn_layer_norm",
        "attn.qkv": _SEPARATE,
        "attn.proj": "self_attn.out_proj",
        "ln_2": "final_layer_norm",
        "mlp.fc": "fc1",
        "mlp.proj": "fc2",
    },
    "llama": _LLAMA_BLOCK,
    "mistral": _LLAMA_BLOCK,
    "qwen2": _LLAMA_BLOCK,
    "qwen3": _LLAMA_BLOCK,
    "gpt_modules": {ours: ours for ours in _LLAMA_BLOCK},
}
_GPT_TRUNK = ("transformer.wte", "transformer.wpe", "transformer.h", "transformer.ln_f")
_LLAMA_TRUNK = ("model.embed_tokens", "", "model.layers", "model.norm")
_TRUNKS: dict[Family, tuple[str, str, str, str]] = {  # token and position embedding, block, final norm
    "gpt2": _GPT_TRUNK,
    "openai-gpt": ("transformer.tokens_embed", "transformer.positions_embed", "transformer.h", ""),
    "gpt_neo": _GPT_TRUNK,
    "gpt_neox": ("gpt_neox.embed_in", "", "gpt_neox.layers", "gpt_neox.final_layer_norm"),
    "opt": (
        *("model.decoder.embed_tokens", "model.decoder.embed_positions"),
        *("model.decoder.layers", "model.decoder.final_layer_norm"),
    ),
    "llama": _LLAMA_TRUNK,
    "mistral": _LLAMA_TRUNK,
    "qwen2": _LLAMA_TRUNK,
    "qwen3": _LLAMA_TRUNK,
    "gpt_modules": ("decoder.wte", "decoder.wpe", "decoder.blocks", "decoder.ln_f"),
}
SCORE = "score.weight"
CHOICE = "multiple_choice_head.summary.weight"
_CHOICE_BIAS = "multiple_choice_head.summary.bias"
_HEAD = "lm_head.weight"
# Tensors of theirs that no model of ours reads unless its table names them: causal masks and angles of old releases,
# the multiple-choice head of what is opened as a language model, and its bias.
_IGNORED = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".position_ids",
            "rotary_emb.inv_freq", "multiple_choice_head.")  # fmt: skip


# Those that torch computes with; of the smaller ones it cannot even say whether they are finite.
_PLAIN_NUMBERS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Entry(NamedTuple):
    """One tensor under both names; `shape` is theirs, `transposed` says that ours is the transpose.

    Where ours is several of theirs on top of one another, `rows` of ours are this one. `heads`: that many times, theirs
    has a head's queries, keys and values together, where ours has all queries first. `scale` times theirs is ours.
    """

    ours: str
    theirs: str
    shape: tuple[int, ...]
    transposed: bool = False
    rows: tuple[int, int] | None = None
    heads: int | None = None
    scale: float = 1.0

    def rows_of_theirs(self, tensor: Tensor) -> Tensor:
        """Of ours, weights, biases or B of a low-rank update, the rows that are theirs, in their order."""
        if self.rows is not None:
            tensor = tensor[slice(*self.rows)] / self.scale
        if self.heads is not None:
            tensor = _exchanged(tensor, 3, self.heads)
        return tensor

    def rows_of_ours(self, tensor: Tensor) -> Tensor:
        """The inverse."""
        if self.heads is not None:
            tensor = _exchanged(tensor, self.heads, 3)
        return tensor * self.scale if self.scale != 1.0 else tensor


def _exchanged(tensor: Tensor, outer: int, inner: int) -> Tensor:
    """Rows that run through `inner` of each of `outer`, running through `outer` of each of `inner`."""
    return tensor.reshape(outer, inner, -1, *tensor.shape[1:]).transpose(0, 1).reshape(tensor.shape)


def weight_map(
    config: DecoderConfig, kind: Kind, task: Labelling | None = None, family: Family | None = None
) -> Iterator[Entry]:
    """Every tensor of a model of this kind; "task" needs its `task`. The scalar head's bias is not among them: theirs
    has none. `family`: of the file, by default the one that such a model is written as.
    """
    width, family = config.n_embd, family or family_of(config, task)
    tokens, positions, block, norm = _TRUNKS[family]
    yield Entry("decoder.wte.weight", f"{tokens}.weight", (config.vocab_size, width))
    if config.positions == "learned":
        rows = config.position_offset + config.n_positions
        yield Entry("decoder.wpe.weight", f"{positions}.weight", (rows, width))
    for layer in range(config.n_layer):
        yield from _block(config, family, f"decoder.blocks.{layer}", f"{block}.{layer}")
    if config.norm == "pre":
        yield from _norm(config, "decoder.ln_f", norm, width)
    if kind == "gpt" and not config.tied:
        yield Entry(_HEAD, "embed_out.weight" if family == "gpt_neox" else _HEAD, (config.vocab_size, width))
    head = "head.linear.weight"
    if kind == "reward":
        yield Entry(head, head if family == "gpt_modules" else SCORE, (1, width))
    if task is not None:
        theirs = CHOICE if task.kind == "multiple_choice" else SCORE
        yield Entry(head, head if family == "gpt_modules" else theirs, (task.n_outputs, width))


def _norm(config: DecoderConfig, ours: str, theirs: str, width: int) -> Iterator[Entry]:
    yield Entry(f"{ours}.weight", f"{theirs}.weight", (width,))
    if config.norm_kind == "layer":
        yield Entry(f"{ours}.bias", f"{theirs}.bias", (width,))


def _block(config: DecoderConfig, family: Family, ours: str, theirs: str) -> Iterator[Entry]:
    for name, their_names in _BLOCKS[family].items():
        if name.endswith(("ln_1", "ln_2")):
            yield from _norm(config, f"{ours}.{name}", f"{theirs}.{their_names}", config.n_embd)
        elif name.endswith("_norm"):
            if config.qk_norm:
                yield from _norm(config, f"{ours}.{name}", f"{theirs}.{their_names}", config.head_width)
        else:
            yield from _linear(config, family, name, ours, theirs)


def _linear(config: DecoderConfig, family: Family, name: str, ours: str, theirs: str) -> Iterator[Entry]:
    """A matrix and its bias, or the parts of one."""
    (parts, inputs), their_names = _size(config, name), _BLOCKS[family][name]
    # GPT-1's and GPT-2's are transposed, and GPT-Neo's scores are not divided by the square root of the head's size.
    convolutional, scale = family in ("gpt2", "openai-gpt"), config.head_width**0.5 if family == "gpt_neo" else 1.0
    biased = {"attn.qkv": config.qkv_bias, "attn.proj": config.proj_bias}.get(name, config.mlp_bias)
    whole, heads = isinstance(their_names, str), config.n_head if family == "gpt_neox" and name == "attn.qkv" else None
    sizes, names, start = ([sum(parts)], [their_names], 0) if whole else (parts, their_names, 0)
    for number, (size, their_name) in enumerate(zip(sizes, names, strict=True)):
        rows = None if whole else (start, start + size)
        start += size
        times = scale if name == "attn.qkv" and number == 0 else 1.0
        shape = (inputs, size) if convolutional else (size, inputs)
        yield Entry(f"{ours}.{name}.weight", f"{theirs}.{their_name}.weight", shape, convolutional, rows, heads, times)
        if biased:
            yield Entry(f"{ours}.{name}.bias", f"{theirs}.{their_name}.bias", (size,), False, rows, heads, times)


def _size(config: DecoderConfig, name: str) -> tuple[list[int], int]:
    """Rows of a matrix, part by part, and its columns."""
    queries, keys = config.n_head * config.head_width, config.kv_heads * config.head_width
    if name == "attn.qkv":
        return [queries, keys, keys], config.n_embd
    if name == "mlp.fc":
        return [config.inner_width] * (2 if config.mlp == "swiglu" else 1), config.n_embd
    return [config.n_embd], queries if name == "attn.proj" else config.inner_width


def to_transformers(
    state: Mapping[str, Tensor], config: DecoderConfig, kind: Kind, task: Labelling | None = None
) -> dict[str, Tensor]:
    """Our `state_dict` under their names and in their layout, on the CPU."""
    tensors = {entry.theirs: _to_theirs(state[entry.ours].detach(), entry) for entry in weight_map(config, kind, task)}
    if CHOICE in tensors:
        tensors[_CHOICE_BIAS] = torch.zeros(1, dtype=tensors[CHOICE].dtype)
    return tensors


def _to_theirs(tensor: Tensor, entry: Entry) -> Tensor:
    # What is a part of ours becomes a copy: files of weights do not take tensors that share memory.
    tensor = entry.rows_of_theirs(tensor) if entry.rows is None else entry.rows_of_theirs(tensor).clone()
    return (tensor.t() if entry.transposed else tensor).cpu().contiguous()


def from_transformers(
    tensors: Mapping[str, Tensor],
    config: DecoderConfig,
    kind: Kind,
    source: str,
    task: Labelling | None = None,
    family: Family | None = None,
) -> dict[str, Tensor]:
    """Their tensors, those of a model of `family`, as a `state_dict` of ours: float32, sharing no memory with them.

    Old releases leave out the prefix (`transformer.`, `model.`); some models keep the embedding under the name of the
    head that is tied to it. Raises `UserError`, naming `source` and the tensor, for one that is missing, unknown, of
    another shape, or not finite.
    """
    family = family or family_of(config, task)
    if family == "gpt_neo" and config.qkv_bias:
        raise UserError(f"{source}: qkv_bias: found true, expected false, as GPT-Neo has no such weights")
    found = {_full_name(name, family): tensor for name, tensor in tensors.items()}
    embedding = f"{_TRUNKS[family][0]}.weight"
    head = "embed_out.weight" if family == "gpt_neox" else _HEAD
    if _HEAD in found:
        found.setdefault(head, found.pop(_HEAD))  # of GPT-NeoX, as version 5 of transformers names it
    if head in found and config.tied:
        found.setdefault(embedding, found[head])
    parts: dict[str, list[Tensor]] = {}
    for entry in weight_map(config, kind, task, family):
        tensor = _checked(found.pop(entry.theirs, None), entry, source)
        tensor = (tensor.t() if entry.transposed else tensor).to(torch.float32, copy=True,
                                                                 memory_format=torch.contiguous_format)  # fmt: skip
        parts.setdefault(entry.ours, []).append(entry.rows_of_ours(tensor))
    state = {name: torch.cat(of) if len(of) > 1 else of[0] for name, of in parts.items()}
    if kind != "gpt" and not config.tied:
        found.pop(head, None)  # it has no use for one
    _check_rest(found, head, state["decoder.wte.weight"], source)
    return state


def _checked(tensor: Tensor | None, entry: Entry, source: str) -> Tensor:
    if tensor is None:
        raise UserError(f"{source}: {entry.theirs}: missing, expected a tensor of shape {list(entry.shape)}")
    if tuple(tensor.shape) != entry.shape:
        shapes = f"found shape {list(tensor.shape)}, expected {list(entry.shape)}"
        raise UserError(f"{source}: {entry.theirs}: {shapes}")
    if (flaw := flaw_of(tensor, "weights")) is not None:
        raise UserError(f"{source}: {entry.theirs}: {flaw}")
    return tensor


def flaw_of(tensor: Tensor, numbers: str) -> str | None:
    """Why a tensor of a file cannot hold such `numbers` ("weights"), if so."""
    if tensor.dtype not in _PLAIN_NUMBERS:
        dtype = str(tensor.dtype).removeprefix("torch.")
        return f"found numbers of type {dtype}, expected floating-point {numbers} of 16 bits or more"
    return None if torch.isfinite(tensor).all() else f"found NaN or infinite values, expected finite {numbers}"


def _full_name(name: str, family: Family) -> str:
    prefix = _TRUNKS[family][0].split(".")[0]
    known = (f"{prefix}.", "lm_head.", "embed_out.", "score.", "multiple_choice_head.", "head.")
    return name if name.startswith(known) or family == "gpt_modules" else f"{prefix}.{name}"


def _check_rest(rest: Mapping[str, Tensor], head: str, embedding: Tensor, source: str) -> None:
    for name, tensor in rest.items():
        if name == head:
            if not torch.equal(tensor.float(), embedding):
                raise UserError(f"{source}: {head}: found its own values, expected those of the token embedding")
        elif not any(part in name for part in _IGNORED):
            raise UserError(f"{source}: {at('', name)}: unknown tensor, expected none of this name")
