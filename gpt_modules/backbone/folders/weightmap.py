"""Our names and layouts of weights beside those of `transformers`: one table, read in both directions.

`transformers` keeps linear layers of GPT-1 and GPT-2 as `Conv1D`, whose weight is (in, out): the transpose of ours.
Those of GPT-Neo lie as ours do, with queries, keys and values apart. In a folder of the family gpt_modules, names and
layouts are ours. The language-model head is tied to the token embedding and has no tensor of its own anywhere. Their
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

_GPT_BLOCK = {
    "ln_1": "ln_1",
    "attn.qkv": "attn.c_attn",
    "attn.proj": "attn.c_proj",
    "ln_2": "ln_2",
    "mlp.fc": "mlp.c_fc",
    "mlp.proj": "mlp.c_proj",
}
_NEO_PARTS = ("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj")
_BLOCKS: dict[Family, dict[str, str]] = {
    "gpt2": _GPT_BLOCK,
    "openai-gpt": _GPT_BLOCK,
    "gpt_neo": {**_GPT_BLOCK, "attn.proj": "attn.attention.out_proj"},
    "gpt_modules": {ours: ours for ours in _GPT_BLOCK},
}
_TRUNKS: dict[Family, tuple[str, str, str, str]] = {  # token and position embedding, block, final norm
    "gpt2": ("transformer.wte", "transformer.wpe", "transformer.h", "transformer.ln_f"),
    "openai-gpt": ("transformer.tokens_embed", "transformer.positions_embed", "transformer.h", "transformer.ln_f"),
    "gpt_neo": ("transformer.wte", "transformer.wpe", "transformer.h", "transformer.ln_f"),
    "gpt_modules": ("decoder.wte", "decoder.wpe", "decoder.blocks", "decoder.ln_f"),
}
SCORE = "score.weight"
CHOICE = "multiple_choice_head.summary.weight"
_CHOICE_BIAS = "multiple_choice_head.summary.bias"
# Tensors of theirs that no model of ours reads unless its table names them: causal masks of old releases, the
# multiple-choice head of what is opened as a language model, and its bias.
_IGNORED = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".position_ids",
            "multiple_choice_head.")  # fmt: skip


class Entry(NamedTuple):
    """One tensor under both names; `shape` is theirs, `transposed` says that ours is the transpose.

    Where ours is several of theirs on top of one another, `part` says which. `scale` times theirs is ours.
    """

    ours: str
    theirs: str
    shape: tuple[int, ...]
    transposed: bool = False
    part: int | None = None
    scale: float = 1.0


def weight_map(
    config: DecoderConfig, kind: Kind, task: Labelling | None = None, family: Family | None = None
) -> Iterator[Entry]:
    """Every tensor of a model of this kind; "task" needs its `task`. The scalar head's bias is not among them: theirs
    has none. `family`: of the file, by default the one that such a model is written as.
    """
    width, family = config.n_embd, family or family_of(config, task)
    tokens, positions, block, norm = _TRUNKS[family]
    yield Entry("decoder.wte.weight", f"{tokens}.weight", (config.vocab_size, width))
    yield Entry("decoder.wpe.weight", f"{positions}.weight", (config.n_positions, width))
    for layer in range(config.n_layer):
        yield from _block(config, family, f"decoder.blocks.{layer}", f"{block}.{layer}")
    if config.norm == "pre":
        yield Entry("decoder.ln_f.weight", f"{norm}.weight", (width,))
        yield Entry("decoder.ln_f.bias", f"{norm}.bias", (width,))
    head = "head.linear.weight"
    if kind == "reward":
        yield Entry(head, head if family == "gpt_modules" else SCORE, (1, width))
    if task is not None:
        theirs = CHOICE if task.kind == "multiple_choice" else SCORE
        yield Entry(head, head if family == "gpt_modules" else theirs, (task.n_outputs, width))


def _block(config: DecoderConfig, family: Family, ours: str, theirs: str) -> Iterator[Entry]:
    width, convolutional = config.n_embd, family in ("gpt2", "openai-gpt")
    shapes = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    shapes |= {"mlp.fc": (4 * width, width), "mlp.proj": (width, 4 * width)}
    for name, their_name in _BLOCKS[family].items():
        if name == "attn.qkv" and family == "gpt_neo":
            for part, module in enumerate(_NEO_PARTS):
                # Their scores are not divided by the square root of the head's size.
                scale = config.head_width**0.5 if part == 0 else 1.0
                yield Entry(f"{ours}.{name}.weight", f"{theirs}.{module}.weight", (width, width), False, part, scale)
            continue
        out, *inputs = shapes.get(name, (width,))
        shape = (*inputs, out) if convolutional else (out, *inputs)
        transposed = convolutional and name in shapes
        yield Entry(f"{ours}.{name}.weight", f"{theirs}.{their_name}.weight", shape, transposed)
        if config.qkv_bias or name != "attn.qkv":
            yield Entry(f"{ours}.{name}.bias", f"{theirs}.{their_name}.bias", (out,))


def to_transformers(
    state: Mapping[str, Tensor], config: DecoderConfig, kind: Kind, task: Labelling | None = None
) -> dict[str, Tensor]:
    """Our `state_dict` under their names and in their layout, on the CPU."""
    tensors = {entry.theirs: _to_theirs(state[entry.ours].detach(), entry) for entry in weight_map(config, kind, task)}
    if CHOICE in tensors:
        tensors[_CHOICE_BIAS] = torch.zeros(1, dtype=tensors[CHOICE].dtype)
    return tensors


def _to_theirs(tensor: Tensor, entry: Entry) -> Tensor:
    if entry.part is not None:
        # A copy: files of weights do not take tensors that share memory.
        tensor = tensor.chunk(3)[entry.part] / entry.scale
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

    Old releases leave out the prefix `transformer.`; some models keep the embedding under the name of the head that is
    tied to it. Raises `UserError`, naming `source` and the tensor, for one that is missing, unknown, of another shape,
    or not finite.
    """
    family = family or family_of(config, task)
    if family == "gpt_neo" and config.qkv_bias:
        raise UserError(f"{source}: qkv_bias: found true, expected false, as GPT-Neo has no such weights")
    found = {_full_name(name): tensor for name, tensor in tensors.items()}
    if "lm_head.weight" in found:
        found.setdefault(f"{_TRUNKS[family][0]}.weight", found["lm_head.weight"])
    parts: dict[str, list[Tensor]] = {}
    for entry in weight_map(config, kind, task, family):
        tensor = _checked(found.pop(entry.theirs, None), entry, source)
        tensor = (tensor.t() if entry.transposed else tensor).to(torch.float32, copy=True,
                                                                 memory_format=torch.contiguous_format)  # fmt: skip
        parts.setdefault(entry.ours, []).append(tensor * entry.scale if entry.scale != 1.0 else tensor)
    state = {name: torch.cat(of) if len(of) > 1 else of[0] for name, of in parts.items()}
    _check_rest(found, state["decoder.wte.weight"], source)
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
    if not tensor.is_floating_point():
        dtype = str(tensor.dtype).removeprefix("torch.")
        return f"found numbers of type {dtype}, expected floating-point {numbers}"
    return None if torch.isfinite(tensor).all() else f"found NaN or infinite values, expected finite {numbers}"


def _full_name(name: str) -> str:
    known = ("transformer.", "lm_head.", "score.", "multiple_choice_head.", "decoder.", "head.")
    return name if name.startswith(known) else f"transformer.{name}"


def _check_rest(rest: Mapping[str, Tensor], embedding: Tensor, source: str) -> None:
    for name, tensor in rest.items():
        if name == "lm_head.weight":
            if not torch.equal(tensor.float(), embedding):
                raise UserError(
                    f"{source}: lm_head.weight: found its own values, expected those of the token embedding"
                )
        elif not any(part in name for part in _IGNORED):
            raise UserError(f"{source}: {at('', name)}: unknown tensor, expected none of this name")
