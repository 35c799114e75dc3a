"""Models that lie in the host's memory and come to the device for the passes that need them."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

_PLACE = "_offloaded"


class _Place(NamedTuple):
    """Of a model that is offloaded: its tensors in the host's memory, and the device that it visits."""

    host: Mapping[str, Tensor]
    device: torch.device


def offload(model: nn.Module, device: torch.device) -> None:
    """Keep the tensors of a model that nobody changes in the host's memory, for a device that is not the CPU. For a
    CUDA device they are pinned, so that the host goes on while they are copied.
    """
    values = {name: value.cpu() for name, value in model.state_dict().items()}
    if device.type == "cuda":
        values = {name: value.pin_memory() for name, value in values.items()}
    setattr(model, _PLACE, _Place(values, device))
    model.load_state_dict(values, assign=True)


@contextmanager
def uploaded(models: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, those of them that are offloaded are on their device. Nothing is copied back: they have not changed."""
    visiting = [(model, place) for model in models if (place := _away(model)) is not None]
    try:
        for model, (host, device) in visiting:
            copies = {name: value.to(device, non_blocking=True) for name, value in host.items()}
            model.load_state_dict(copies, assign=True)
        yield
    finally:
        for model, (host, _) in visiting:
            model.load_state_dict(host, assign=True)


def _away(model: nn.Module) -> _Place | None:
    """The place of a model that is offloaded, and not on its device already."""
    place: _Place | None = getattr(model, _PLACE, None)
    return place if place and next(model.parameters()).device != place.device else None
