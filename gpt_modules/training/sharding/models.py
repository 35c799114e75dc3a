"""Models in shards: split in place, called while all their weights are held, gathered whole.

A block is gathered when its turn comes and let go after it (Rajbhandari et al. 2020, ZeRO stage 3; FSDP2 of torch). The
steps, the numbers that a new model starts with and the checkpoints are those of a run on one device, so that a run may
go on from either.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias, TypeVar

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from gpt_modules.backbone import GPT, Decoder, DecoderConfig, LabellingModel, RewardModel
from gpt_modules.backbone.decoder import Block
from gpt_modules.backbone.heads import ScalarHead
from gpt_modules.backbone.offload import uploaded
from gpt_modules.errors import UserError
from gpt_modules.training.sharding.strategy import FSDP2Strategy
from gpt_modules.training.sharding.tensors import gather, shard_of

Sharded: TypeAlias = GPT | RewardModel | LabellingModel | Decoder
ModelT = TypeVar("ModelT", bound=Sharded)


def shard(model: Sharded, module: L.LightningModule) -> None:
    """Split a model over the devices of the run, in place; a `GPT` on the meta device gets the weights of a new model,
    and none is ever whole anywhere.

    Under bf16-mixed, blocks are gathered in bfloat16 and their gradients are summed in float32; embeddings and the
    residual stream stay float32, as autocast has them.

    Raises:
        UserError: under another strategy that shards than `fsdp2`.
    """
    mesh, device = _mesh(module), module.trainer.strategy.root_device
    blocks = MixedPrecisionPolicy(cast_forward_inputs=False)
    if module.trainer.precision == "bf16-mixed" and device.type != "cpu":  # whose layer norm takes one type
        blocks = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    # A function, for a module would become a part of the model.
    model.blank = partial(copy.deepcopy, _blank(model))  # type: ignore[assignment]
    for block in _decoder(model).blocks:
        fully_shard(block, mesh=mesh, mp_policy=blocks)
    # The loss reads the head, often the embedding, after the forward pass: it stays until the backward pass.
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    for name in ("hidden", "token_values", "raw_scores"):
        if hasattr(model, name):
            register_fsdp_forward_method(model, name)
    if isinstance(model, GPT) and _is_blank(model):
        model.to_empty(device=device)
        draw(model, device)


def shard_head(head: ScalarHead, module: L.LightningModule) -> None:
    """Split a head that stands on the trunk of a model which is split already.

    Raises:
        UserError: as `shard`.
    """
    fully_shard(head, mesh=_mesh(module), reshard_after_forward=False)


def _mesh(module: L.LightningModule) -> DeviceMesh:
    strategy = module.trainer.strategy
    if not isinstance(strategy, FSDP2Strategy):
        raise UserError(f"trainer.strategy: found {type(strategy).__name__}, expected fsdp2")
    return strategy.device_mesh["data_parallel"]


def _decoder(model: Sharded) -> Decoder:
    return model if isinstance(model, Decoder) else model.decoder


def _is_blank(model: nn.Module) -> bool:
    return next(model.parameters()).is_meta


def _blank(model: ModelT) -> ModelT:
    """The same model without weights, on the meta device."""
    memo: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    return copy.deepcopy(model, memo)


@torch.no_grad()
def draw(model: GPT, device: torch.device) -> None:
    """Fill shards with the numbers that a new model of one device has: every process draws a layer at a time, keeps
    its part and lets the rest go. Nothing is sent.
    """
    new = blank_gpt(model.config)
    _draw(layers_of(new.decoder), layers_of(model.decoder), new.decoder, device)
    if not model.config.tied:
        _draw([new.lm_head], [model.lm_head], new.decoder, device)


def _draw(blank: list[nn.Module], layers: list[nn.Module], decoder: Decoder, device: torch.device) -> None:
    for layer in blank:  # what torch draws on construction, before `reset_parameters` draws anew
        for part in layer.to_empty(device=device).modules():
            if isinstance(part, nn.Embedding | nn.Linear):
                part.reset_parameters()
        layer.to("meta")
    for layer, sharded in zip(blank, layers, strict=True):
        decoder.reset_parameters(layer.to_empty(device=device))
        for value, own in zip(layer.parameters(), sharded.parameters(), strict=True):
            own.copy_(shard_of(value, own))
        layer.to("meta")


def layers_of(decoder: Decoder) -> list[nn.Module]:
    """Embeddings, blocks and the final norm, in the order in which they are made."""
    return [layer for child in decoder.children() for layer in (child if child is decoder.blocks else [child])]


def blank_gpt(config: DecoderConfig) -> GPT:
    """A model without weights, on the meta device."""
    with torch.device("meta"):
        return GPT(config)


def is_sharded(model: nn.Module) -> bool:
    """Whether a part of `model` lies in shards."""
    return any(isinstance(part, FSDPModule) for part in model.modules())


@contextmanager
def held(*models: nn.Module) -> Iterator[None]:
    """Inside, all weights of these models are on every device: processes may then call them at different times, as
    often as each likes, and no call costs communication. All processes take part. Does nothing for what is neither
    sharded nor offloaded.
    """
    shards = _shards(models)
    for part in shards:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        with uploaded(models):
            yield
    finally:
        for part in shards:
            part.set_reshard_after_forward(isinstance(part, Block), recurse=False)
            part.reshard()


def let_go(*models: nn.Module) -> None:
    """Keep this process's part alone, as after a backward pass: one without leaves the embeddings and the head."""
    for part in _shards(models):
        part.reshard()


def _shards(models: Iterable[nn.Module]) -> list[FSDPModule]:
    parts = (part for model in models for part in model.modules() if isinstance(part, FSDPModule))
    return list(dict.fromkeys(parts))


@contextmanager
def gathered(model: ModelT) -> Iterator[ModelT]:
    """The model with all its weights on every device, to generate from; see `held`. Its layers, without the hooks that
    gather and let go. The model itself where it is not sharded.
    """
    if not is_sharded(model):
        with uploaded([model]):
            yield model
        return
    with held(model):
        dtype = next(_decoder(model).blocks.parameters()).dtype
        yield _filled(model, {name: value.detach().to(dtype) for name, value in model.named_parameters()})


def whole(model: ModelT) -> ModelT | None:
    """On the first process a copy on the CPU with all weights, None on the others, which take part. The model itself
    where it is not sharded.
    """
    if not is_sharded(model):
        return model
    let_go(model)
    first = torch.distributed.get_rank() == 0
    weights = gather(dict(model.named_parameters()), first)
    return _filled(model, weights) if first else None


def _filled(model: ModelT, weights: Mapping[str, Tensor]) -> ModelT:
    plain: ModelT = model.blank()  # type: ignore[operator]
    plain.load_state_dict({**weights, **dict(model.named_buffers())}, strict=False, assign=True)
    plain.train(model.training)
    return plain
