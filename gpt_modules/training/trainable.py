"""What of a pretrained model learns, and how fast: frozen layers, rates that fall with depth (Howard and Ruder 2018,
section 3.2).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gpt_modules.backbone import Decoder
from gpt_modules.errors import UserError
from gpt_modules.training.optimizers import parameter_groups
from gpt_modules.training.sharding.tensors import local, own_rows


def freeze(decoder: Decoder, blocks: int) -> None:
    """Stop the embeddings and the lowest `blocks` blocks from learning.

    Raises:
        UserError: when there are fewer blocks.
    """
    if not 0 <= blocks <= len(decoder.blocks):
        raise UserError(f"freeze: found {blocks}, expected 0 to the decoder's {len(decoder.blocks)} blocks")
    for module in (*decoder.embeddings, *decoder.blocks[:blocks]):
        module.requires_grad_(False)


def learn_rows(embedding: nn.Embedding | nn.Linear, rows: Sequence[int]) -> None:
    """Let only these rows of an embedding or output matrix learn: tokens that the pretrained model has never seen. Of
    a matrix in shards, once it is.
    """
    weight = embedding.weight
    mask = torch.zeros(len(weight), 1)
    mask[list(rows)] = 1.0
    own = own_rows(mask, weight)
    weight.requires_grad_(True)

    def only_rows(parameter: Tensor) -> None:
        assert parameter.grad is not None
        gradient = local(parameter.grad)
        gradient.mul_(own.to(gradient.device, gradient.dtype))

    # Of what has been summed: the gradient of a shard is, by its process, from those of all.
    weight.register_post_accumulate_grad_hook(only_rows)  # type: ignore[no-untyped-call]


def groups_by_depth(
    decoder: Decoder, head: nn.Module, lr: float, layer_decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Parameter groups whose rate falls by `layer_decay` with each layer below the head: lr at the head (and the final
    norm), lr * layer_decay at the last block, ..., lr * layer_decay^(n_layer + 1) at the embeddings.
    """
    final = [decoder.ln_f] if hasattr(decoder, "ln_f") else []
    levels: list[list[nn.Module]] = [[head, *final], *([block] for block in reversed(decoder.blocks))]
    levels.append(decoder.embeddings)
    return [
        group
        for depth, modules in enumerate(levels)
        for group in parameter_groups(modules, weight_decay, lr=lr * layer_decay**depth)
    ]
