"""Training in shards: each device keeps its part of the weights, of their gradients and of the optimizer's state.

A block is gathered when its turn comes and let go after it (Rajbhandari et al. 2020, ZeRO stage 3; FSDP2 of torch). The
steps, the numbers that a new model starts with and the checkpoints are those of a run on one device, so that a run may
go on from either.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from gpt_modules.backbone import GPT, Decoder, DecoderConfig
from gpt_modules.errors import UserError
from gpt_modules.training.callbacks.checkpointing import VerifiedCheckpointIO
from gpt_modules.training.muon import MuonAdamW


class FSDP2Strategy(ModelParallelStrategy):
    """`trainer.strategy: fsdp2`: shards over all devices of all machines.

    A checkpoint is one file as of one device, gathered tensor by tensor on the first process: Lightning's sharded ones
    hold pickles that run on loading. That process needs memory for all of it, 12 bytes a parameter with AdamW.
    """

    def __init__(self) -> None:
        super().__init__(data_parallel_size=1, tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """As of Lightning, over the devices that there are: its own default is tensor parallelism within a machine."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Optimizer states are restored by `load_optimizer_state_dict`, not along with the file."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole weights on the first process, None in their place on the others."""
        state: dict[str, Any] = gather(self.lightning_module.state_dict(), self.is_global_zero)  # type: ignore[union-attr]
        return state

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The same for an optimizer, in the form of its own `state_dict`."""
        own = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        state: dict[str, Any] = gather(own.state_dict(), self.is_global_zero)
        return state

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """The file mapped into memory: a process reads its own rows only."""
        assert isinstance(self.checkpoint_io, VerifiedCheckpointIO)
        return self.checkpoint_io.load_checkpoint(Path(checkpoint_path), mmap=True)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Keep this process's part of whole weights."""
        module = self.lightning_module
        assert module is not None
        own, stored = module.state_dict(), checkpoint["state_dict"]
        module.load_state_dict({name: shard_of(value, own.get(name)) for name, value in stored.items()}, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Keep this process's part of whole optimizer states."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(shard_state(optimizer, state))


StrategyRegistry.register("fsdp2", FSDP2Strategy, description="weights, gradients and optimizer state in shards")


def refuse_sharding(module: L.LightningModule) -> None:
    """Called by procedures that are not wired for it: they would train a whole model on each device, each its own.

    Raises:
        UserError: under a strategy that shards.
    """
    if module.device_mesh is not None:
        found = type(module.trainer.strategy).__name__
        raise UserError(
            f"trainer.strategy: found {found}, expected auto or ddp: {type(module).__name__} does not shard"
        )


def shard(model: GPT, module: L.LightningModule) -> None:
    """Split a model over the devices of the run, in place; one on the meta device gets the weights of a new model,
    and none is ever whole anywhere.

    Under bf16-mixed, blocks are gathered in bfloat16 and their gradients are summed in float32; embeddings and the
    residual stream stay float32, as autocast has them.

    Raises:
        UserError: under another strategy that shards than `fsdp2`.
    """
    strategy = module.trainer.strategy
    if not isinstance(strategy, FSDP2Strategy):
        raise UserError(f"trainer.strategy: found {type(strategy).__name__}, expected fsdp2")
    mesh = strategy.device_mesh["data_parallel"]
    blocks = MixedPrecisionPolicy(cast_forward_inputs=False)
    if (
        module.trainer.precision == "bf16-mixed" and strategy.root_device.type != "cpu"
    ):  # whose layer norm takes one type
        blocks = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in model.decoder.blocks:
        fully_shard(block, mesh=mesh, mp_policy=blocks)
    # The loss reads the head, often the embedding, after the forward pass: it stays until the backward pass.
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(model, "hidden")
    if model.head_weight.is_meta:
        model.to_empty(device=strategy.root_device)
        draw(model, strategy.root_device)


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
def gathered(model: GPT) -> Iterator[GPT]:
    """The model with all its weights on every device, to generate from: processes may then stop at different lengths,
    and a token costs no communication. All processes take part; the model itself where it is not sharded.
    """
    if not is_sharded(model):
        yield model
        return
    shards = [part for part in model.modules() if isinstance(part, FSDPModule)]
    for part in shards:
        part.unshard()
    dtype = next(model.decoder.blocks.parameters()).dtype
    plain = blank_gpt(model.config)  # without the hooks that gather and let go
    plain.load_state_dict({name: value.detach().to(dtype) for name, value in model.named_parameters()}, assign=True)
    try:
        yield plain
    finally:
        for part in shards:
            part.reshard()


def whole(model: GPT) -> GPT | None:
    """On the first process a copy on the CPU with all weights, None on the others, which take part."""
    first = torch.distributed.get_rank() == 0
    state = gather(model.state_dict(), first)
    if not first:
        return None
    plain = blank_gpt(model.config)
    plain.load_state_dict(state, assign=True)
    return plain


def gather(value: Any, keep: bool) -> Any:
    """Nested dicts and lists with whole tensors on the CPU in place of shards, or None where they are not kept."""
    if isinstance(value, DTensor):
        tensor = value.full_tensor()
        return tensor.cpu() if keep else None
    if isinstance(value, Mapping):
        return {key: gather(item, keep) for key, item in value.items()}
    if isinstance(value, list):
        return [gather(item, keep) for item in value]
    return value


def shard_of(value: Any, like: Any) -> Any:
    """This process's part of a whole tensor, split as `like` is; anything else, and a tensor of another shape, as it
    is.
    """
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    mesh = like.device_mesh
    parts, rank = value.chunk(mesh.size()), mesh.get_local_rank()
    part = parts[rank] if rank < len(parts) else value[:0]
    local = part.to(like.device, like.dtype, copy=True)
    return DTensor.from_local(local, mesh, like.placements, run_check=False, shape=value.shape, stride=like.stride())


def shard_state(optimizer: Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's `state_dict` of whole tensors, with this process's parts in their place."""
    if isinstance(optimizer, MuonAdamW):
        return {name: shard_state(part, state[name]) for name, part in optimizer.parts.items()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    entries = {
        index: {name: shard_of(value, parameters[index]) for name, value in entry.items()}
        for index, entry in state["state"].items()
    }
    return {**state, "state": entries}


def local(tensor: Tensor) -> Tensor:
    """This process's part of a shard; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
