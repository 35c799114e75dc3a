"""Training in shards: each device keeps its part of the weights, of their gradients and of the optimizer's state.

A block is gathered when its turn comes and let go after it (Rajbhandari et al. 2020, ZeRO stage 3; FSDP2 of torch). The
steps, the numbers that a new model starts with and the checkpoints are those of a run on one device, so that a run may
go on from either.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import lightning.pytorch as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard
from torch.optim import Optimizer

from gpt_modules.backbone import GPT, Decoder, DecoderConfig, LabellingModel, RewardModel
from gpt_modules.backbone.decoder import Block
from gpt_modules.backbone.heads import ScalarHead
from gpt_modules.backbone.offload import uploaded
from gpt_modules.errors import UserError
from gpt_modules.storage.durable import discard, room_for, temporary_for
from gpt_modules.training.callbacks.checkpointing import VerifiedCheckpointIO, digest_path
from gpt_modules.training.muon import MuonAdamW
from gpt_modules.training.processes import as_one
from gpt_modules.training.shard_files import Stored, finish_folder, parted, rows_of, shard_name, write_part

Sharded: TypeAlias = GPT | RewardModel | LabellingModel | Decoder
ModelT = TypeVar("ModelT", bound=Sharded)


class FSDP2Strategy(ModelParallelStrategy):
    """`trainer.strategy: fsdp2`: shards over all devices of all machines.

    A checkpoint is a folder, in which each process writes its own part, see `shard_files`: Lightning's own ones hold
    pickles that run on loading. Any number of processes reads it, and a file of one device as well.
    """

    def __init__(self) -> None:
        super().__init__(data_parallel_size=1, tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """As of Lightning, over the devices that there are: its own default is tensor parallelism within a machine."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Before it, as under every other strategy: models are in shards once they are configured, and the place in the
        data and the steps that were made decide on the length of an epoch and of the run.
        """
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Optimizer states are restored by `load_optimizer_state_dict`, not along with the file."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Weights in shards."""
        state: dict[str, Any] = self.lightning_module.state_dict()  # type: ignore[union-attr]
        return state

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The same for an optimizer, in the form of its own `state_dict`."""
        own = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return own.state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Each process writes its part; the folder has its name once all of them are on disk.

        Raises:
            UserError: on all processes, when one of them could not write.
        """
        assert isinstance(self.checkpoint_io, VerifiedCheckpointIO)
        target, name = self.checkpoint_io.target(filepath), shard_name(self.global_rank, self.world_size)
        folder = Path(self.broadcast(str(temporary_for(target))))
        rest, parts = parted(checkpoint, lambda value: local(value) if isinstance(value, DTensor) else None)
        try:
            self._together(target, folder.mkdir if self.is_global_zero else None)
            digests = dict(self._together(target, lambda: (name, write_part(folder, name, parts))))
            finish = partial(finish_folder, folder, target, digest_path(target), rest, digests)
            self._together(target, finish if self.is_global_zero else None)
        finally:
            if self.is_global_zero:
                discard(folder)

    def _together(self, target: Path, write: Callable[[], Any] | None) -> list[Any]:
        """What each process's `write` returns; what fails on one fails on all."""

        def own() -> Any:
            with room_for(target):
                return None if write is None else write()

        return as_one(own)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """A process reads its own rows only: of a folder as shards, of a file, which is mapped into memory, later."""
        assert isinstance(self.checkpoint_io, VerifiedCheckpointIO)
        return self.checkpoint_io.load_checkpoint(Path(checkpoint_path), mmap=True, own=self._own)

    def _own(self, stored: Stored) -> DTensor:
        mesh = self.device_mesh["data_parallel"]
        rows = stored.rows(*rows_of(mesh.get_local_rank(), mesh.size(), stored.shape[0]))
        stride = torch.empty(stored.shape, device="meta").stride()
        return DTensor.from_local(rows, mesh, [Shard(0)], run_check=False, shape=stored.shape, stride=stride)

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


def refuse_sharding(module: L.LightningModule, why: str, what: str = "", instead: str = "auto or ddp") -> None:
    """Called by a procedure for which it is nothing, or of a setting for which it is not.

    Args:
        why: in words.
        what: key of the setting; left out: the procedure itself.
        instead: what is expected of the strategy.

    Raises:
        UserError: under a strategy that shards.
    """
    if module.device_mesh is not None:
        found = type(module.trainer.strategy).__name__
        beside = what or type(module).__name__
        raise UserError(f"trainer.strategy: found {found} beside {beside}, expected {instead}: {why}")


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
    """This process's part of a whole tensor, split as `like` is; anything else, a part that has been read as one, and a
    tensor of another shape, as it is.
    """
    if isinstance(value, DTensor) or not isinstance(like, DTensor):
        return value
    if not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    mesh, part = like.device_mesh, own_rows(value, like).to(like.device, like.dtype, copy=True)
    return DTensor.from_local(part, mesh, like.placements, run_check=False, shape=value.shape, stride=like.stride())


def own_rows(value: Tensor, like: Tensor) -> Tensor:
    """Of a tensor with a row for each of `like`, those that this process has of it."""
    if not isinstance(like, DTensor):
        return value
    first, end = rows_of(like.device_mesh.get_local_rank(), like.device_mesh.size(), len(value))
    return value[first:end]


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


def full(tensor: Tensor) -> Tensor:
    """What the processes have of a number together; any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's part of a shard; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
