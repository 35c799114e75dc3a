"""What the processes of a run found, each on its own rows, brought together: their means have no mean that counts."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric, MetricCollection


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
    return [_joined(parts).to(own.device) for own, parts in zip(columns, zip(*everyone, strict=True), strict=True)]


def in_order(numbers: Tensor, columns: Sequence[Tensor]) -> list[Tensor]:
    """The rows of all processes in the order of their numbers: the same however they were shared out."""
    numbers, *rows = gathered([numbers, *columns])
    order = numbers.argsort(stable=True)
    return [column[order] for column in rows]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    if parts[0].ndim != 2:
        return torch.cat(list(parts))
    width = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, width - part.shape[1])) for part in parts])


def take(metric: Metric | MetricCollection) -> Any:
    """What a metric has measured; the next update begins anew. Called by all processes.

    Lightning validates in inference mode, except within a fit: a state that is made there could not be added to in the
    fit that follows.
    """
    value = metric.compute()
    with torch.inference_mode(False):
        metric.reset()
    return value


class HeldOut:
    """Numbers measured on held-out rows, batch after batch; read together, over all processes, in float64.

    A process without rows contributes nothing, and a mean is the mean over all rows, whatever batches they came in.
    """

    def __init__(self, *names: str) -> None:
        self.names = names
        self._batches: list[Tensor] = []

    def add(self, **columns: Tensor) -> None:
        """Rows (B,) of each name."""
        self._batches.append(torch.stack([columns[name].detach().cpu().double() for name in self.names], dim=1))

    def take(self) -> dict[str, Tensor]:
        """All rows (N,) of each name, on the CPU; the next `add` begins anew. Called by all processes."""
        own = torch.cat([torch.zeros(0, len(self.names), dtype=torch.float64), *self._batches])
        self._batches = []
        return dict(zip(self.names, gathered([own])[0].unbind(1), strict=True))
