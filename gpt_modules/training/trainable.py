"""What of a pretrained model learns, and how fast: frozen layers, LoRA, rates that fall with depth.

Sources: Howard and Ruder 2018, section 3.2 (rates by layer); Hu et al. 2022 (LoRA), through the library `peft`.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gpt_modules.backbone import Decoder
from gpt_modules.errors import UserError
from gpt_modules.training.hyperparameters import expect_number
from gpt_modules.training.optimizers import parameter_groups

ModelT = TypeVar("ModelT", bound=nn.Module)


@dataclass(frozen=True)
class LoRA:
    """Low-rank updates of every attention and MLP matrix, in place of the matrices (Hu et al. 2022).

    Args:
        rank: rank of an update.
        alpha: an update counts alpha / rank times.
        dropout: on what enters an update.
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0

    def __post_init__(self) -> None:
        expect_number("lora.rank", self.rank, "[1, inf)", whole=True)
        expect_number("lora.alpha", self.alpha, "(0, inf)")
        expect_number("lora.dropout", self.dropout, "[0, 1)")


def add_lora(decoder: Decoder, lora: LoRA) -> None:
    """Put an update that starts at zero beside each matrix of the blocks, in place; nothing else of it learns.

    Raises:
        UserError: without the package `peft`.
    """
    try:
        import peft  # only here: an extra, and seconds to import
    except ImportError as error:
        raise UserError("lora: the package peft is not installed; pip install 'gpt-modules[lora]'") from error
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=["attn.qkv", "attn.proj", "mlp.fc", "mlp.proj"],
    )
    peft.inject_adapter_in_model(config, decoder)


def merged(model: ModelT) -> ModelT:
    """A copy with LoRA's updates added to the matrices, under the names that a folder has; the model itself where it
    has no LoRA.
    """
    adapted = [name for name, module in model.named_modules() if hasattr(module, "get_base_layer")]
    if not adapted:
        return model
    plain = copy.deepcopy(model)
    for name in adapted:
        parent, _, child = name.rpartition(".")
        layer: Any = plain.get_submodule(name)
        layer.merge(safe_merge=True)
        setattr(plain.get_submodule(parent), child, layer.get_base_layer())
    return plain


def freeze(decoder: Decoder, blocks: int) -> None:
    """Stop the embeddings and the lowest `blocks` blocks from learning.

    Raises:
        UserError: when there are fewer blocks.
    """
    if not 0 <= blocks <= len(decoder.blocks):
        raise UserError(f"freeze: found {blocks}, expected 0 to the decoder's {len(decoder.blocks)} blocks")
    for module in (decoder.wte, decoder.wpe, *decoder.blocks[:blocks]):
        module.requires_grad_(False)


def learn_rows(embedding: nn.Embedding, rows: Sequence[int]) -> None:
    """Let only these rows of an embedding learn: tokens that the pretrained model has never seen."""
    mask = torch.zeros(embedding.num_embeddings, 1)
    mask[list(rows)] = 1.0
    embedding.weight.requires_grad_(True)

    def only_rows(gradient: Tensor) -> Tensor:
        return gradient * mask.to(gradient.device, gradient.dtype)

    embedding.weight.register_hook(only_rows)  # type: ignore[no-untyped-call]


def groups_by_depth(
    decoder: Decoder, head: nn.Module, lr: float, layer_decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Parameter groups whose rate falls by `layer_decay` with each layer below the head: lr at the head (and the final
    layer norm), lr * layer_decay at the last block, ..., lr * layer_decay^(n_layer + 1) at the embeddings.
    """
    final = [decoder.ln_f] if hasattr(decoder, "ln_f") else []
    levels: list[list[nn.Module]] = [[head, *final], *([block] for block in reversed(decoder.blocks))]
    levels.append([decoder.wte, decoder.wpe])
    return [
        group
        for depth, modules in enumerate(levels)
        for group in parameter_groups(modules, weight_decay, lr=lr * layer_decay**depth)
    ]
