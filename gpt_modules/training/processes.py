"""What the processes of a run found, each on its own rows, brought together: their means have no mean that counts."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from gpt_modules.errors import UserError

T = TypeVar("T")


def place() -> tuple[int, int]:
    """This process's number, and how many there are."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def as_one(act: Callable[[], T]) -> list[T]:
    """What `act` returns on each process, on every process. Called by all of them.

    Raises:
        UserError: on all processes, what it raised on one, of several the first.
    """
    answer: Any
    try:
        answer = act()
    except UserError as error:
        if place()[1] == 1:
            raise
        answer = error
    everyone: list[Any] = [answer]
    if (world := place()[1]) > 1:
        everyone = [None] * world
        dist.all_gather_object(everyone, answer)
    for failed in (one for one in everyone if isinstance(one, UserError)):
        raise failed
    return everyone


def gathered(columns: Sequence[Tensor]) -> list[Tensor]:
    """The rows of all processes, on every process, those of the first process first. Called by all of them.

    Args:
        columns: tensors (B, ...) of as many rows each; B may differ between processes and be 0. Two-dimensional ones
            that are narrower than another process's are filled up with 0 on the right.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return list(columns)
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, [column.cpu() for column in columns])
    return [joined(parts).to(own.device) for own, parts in zip(columns, zip(*everyone, strict=True), strict=True)]


def in_order(numbers: Tensor, columns: Sequence[Tensor]) -> list[Tensor]:
    """The rows of all processes in the order of their numbers: the same however they were shared out."""
    numbers, *rows = gathered([numbers, *columns])
    order = numbers.argsort(stable=True)
    return [column[order] for column in rows]


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Rows one after another; two-dimensional ones filled up with 0 on the right to the widest."""
    if parts[0].ndim != 2:
        return torch.cat(list(parts))
    width = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, width - part.shape[1])) for part in parts])


class HeldOut:
    """Numbers measured on held-out rows, batch after batch; read together, over all processes, in float64.

    A process without rows contributes nothing, and a mean is the mean over all rows, whatever batches they came in. No
    metric of torchmetrics: as part of a module it would add up in the precision of the run, and 256 + 1 is 256 in bf16.
    """

    def __init__(self, *names: str) -> None:
        self._columns: dict[str, list[Tensor]] = {name: [] for name in names}

    def add(self, **columns: Tensor) -> None:
        """Rows (B,) of each name; a scalar is one row. They stay on their device, which nobody waits for."""
        for name, parts in self._columns.items():
            parts.append(columns[name].detach().reshape(-1).clone())

    def take(self) -> dict[str, Tensor]:
        """All rows (N,) of each name, on the CPU; the next `add` begins anew. Called by all processes."""
        nothing = torch.zeros(0, dtype=torch.float64)
        own = [torch.cat(parts).cpu().double() if parts else nothing for parts in self._columns.values()]
        for parts in self._columns.values():
            parts.clear()
        return dict(zip(self._columns, gathered([torch.stack(own, dim=1)])[0].unbind(1), strict=True))
