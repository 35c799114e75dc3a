"""Low-rank updates beside the frozen matrices of a decoder: h = W0 x + (alpha / r) B A x (Hu et al. 2022, equation 3).

B starts at zero, so that a model begins as its base, exactly; `without_lora` is the base again, exactly. The matrices
keep their names and their memory.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gpt_modules.backbone.decoder import Decoder
from gpt_modules.backbone.linear import Linear
from gpt_modules.backbone.masks import computed_in
from gpt_modules.errors import UserError, expect
from gpt_modules.storage.json_files import shown

Target: TypeAlias = Literal["attn.qkv", "attn.proj", "mlp.fc", "mlp.proj"]
TARGETS: tuple[Target, ...] = get_args(Target)
ModelT = TypeVar("ModelT", bound=nn.Module)


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank updates that learn in place of the decoder, which is frozen.

    Args:
        rank: r, columns of B and rows of A.
        alpha: an update counts alpha / rank times.
        dropout: on what enters an update.
        targets: the matrices of a block that have one. Queries, keys and values are one matrix and share an A.

    Raises `UserError`, one line naming the field, for a value that makes no update.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[Target, ...] = TARGETS

    def __post_init__(self) -> None:
        whole = isinstance(self.rank, int) and not isinstance(self.rank, bool)
        expect(whole and self.rank >= 1, "lora.rank", self.rank, "a whole number of at least 1")
        expect(_is_number(self.alpha) and 0 < self.alpha < math.inf, "lora.alpha", self.alpha, "a number above 0")
        expect(_is_number(self.dropout) and 0 <= self.dropout < 1, "lora.dropout", self.dropout, "a number in [0, 1)")
        object.__setattr__(self, "targets", _targets(self.targets))

    @property
    def scaling(self) -> float:
        """What the product B A is multiplied by."""
        return self.alpha / self.rank


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _targets(found: Sequence[Target]) -> tuple[Target, ...]:
    """In the order of a block, whatever the recipe's; a checkpoint has a list."""
    chosen = tuple(target for target in TARGETS if target in found)
    if not chosen or len(chosen) != len(found):
        raise UserError(f"lora.targets: found {shown(list(found))}, expected one or more of {', '.join(TARGETS)}")
    return chosen


class LoRALinear(nn.Linear):
    """A linear layer with an update beside its weight, which it takes over from `linear`."""

    def __init__(self, linear: nn.Linear, config: LoRAConfig) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = linear.weight
        self.register_parameter("bias", linear.bias)
        # As in the paper's code: A as a linear layer of torch is drawn, B zero.
        self.lora_a = nn.Parameter(linear.weight.new_empty(config.rank, linear.in_features))
        self.lora_b = nn.Parameter(linear.weight.new_zeros(linear.out_features, config.rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        self.scaling, self.dropout = config.scaling, config.dropout
        self.active = True

    def forward(self, input: Float[Tensor, "*S I"]) -> Float[Tensor, "*S O"]:
        out = F.linear(input, self.weight, self.bias)
        if not self.active:
            return out
        low = F.linear(F.dropout(input, self.dropout, self.training), self.lora_a)
        updated = torch.addmm(out.flatten(0, -2), low.flatten(0, -2), self.lora_b.t(), alpha=self.scaling)
        return updated.view_as(out)

    @torch.no_grad()
    def merged_weight(self) -> Float[Tensor, "O I"]:
        """W0 + (alpha / r) B A, rounded once to the weight's type."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        with torch.autocast(self.weight.device.type, enabled=False):
            update = self.lora_b.to(wide) @ self.lora_a.to(wide)
        return (self.weight + self.scaling * update).to(self.weight.dtype)


def add_lora(decoder: Decoder, config: LoRAConfig) -> None:
    """Freeze a decoder and put updates beside the matrices of its blocks, in place; drawn from torch's global
    generator.

    Raises:
        UserError: an update of this rank would have more numbers than a square matrix of the decoder.
    """
    width = decoder.config.n_embd
    expect(2 * config.rank <= width, "lora.rank", config.rank, f"at most half of n_embd = {width}")
    decoder.requires_grad_(False)
    for block in decoder.blocks:
        for target in config.targets:
            parent, _, name = target.rpartition(".")
            linear = block.get_submodule(target)
            assert isinstance(linear, nn.Linear)
            setattr(block.get_submodule(parent), name, LoRALinear(linear, config))


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The layers that have an update, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


@contextmanager
def without_lora(model: nn.Module) -> Iterator[None]:
    """Inside, the model is its base, bit for bit: no update counts, and none is computed."""
    active = [layer for layer in lora_layers(model).values() if layer.active]
    for layer in active:
        layer.active = False
    try:
        yield
    finally:
        for layer in active:
            layer.active = True


@contextmanager
def lend_merged(model: nn.Module) -> Iterator[None]:
    """Inside, a layer multiplies by one matrix that has its update in it: what many passes without gradients want.

    Costs a copy of the adapted matrices, in the type that they are multiplied in; afterwards each has its own memory
    back. Within `without_lora` nothing is merged.
    """
    layers = [layer for layer in lora_layers(model).values() if layer.active]
    own = [layer.weight.data for layer in layers]
    try:
        for layer in layers:
            # Autocast keeps its copies of weights that learn only: a frozen one would be cast in every pass.
            layer.weight.data = layer.merged_weight().to(computed_in(layer.weight))
        with without_lora(model):
            yield
    finally:
        for layer, data in zip(layers, own, strict=True):
            layer.weight.data = data


def merge_lora(model: ModelT) -> ModelT:
    """A model of the same kind with the updates added to the matrices and no layer of LoRA; what has none is shared
    with `model`, which stays as it is. The model itself where it has no LoRA.
    """
    layers = lora_layers(model)
    return _rebuilt(model, {name: layer.merged_weight() for name, layer in layers.items()}) if layers else model


def base_of(model: ModelT) -> ModelT:
    """The model under the updates as one of its own, which shares all its memory with `model`: what learns beside it
    does not reach it. Nobody may read it while the matrices are lent (`lend_merged`).
    """
    return _rebuilt(model, {name: layer.weight for name, layer in lora_layers(model).items()})


def _rebuilt(model: ModelT, weights: Mapping[str, Tensor]) -> ModelT:
    """A model of the same tensors, with plain layers of these weights in place of those of LoRA."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    plain = copy.deepcopy(model, shared)
    for name, weight in weights.items():
        parent, _, child = name.rpartition(".")
        layer = plain.get_submodule(name)
        assert isinstance(layer, LoRALinear)
        setattr(plain.get_submodule(parent), child, _plain(layer, weight))
    return plain


def _plain(layer: LoRALinear, weight: Tensor) -> Linear:
    linear = Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    linear.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, requires_grad=False)
    linear.register_parameter("bias", layer.bias)
    return linear
