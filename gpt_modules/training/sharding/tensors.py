"""A process's rows of a tensor, and a whole tensor of all rows."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from gpt_modules.training.muon import MuonAdamW
from gpt_modules.training.sharding.files import rows_of


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
