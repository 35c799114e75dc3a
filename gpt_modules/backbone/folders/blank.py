"""Models without weights, to be filled from a folder."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class _Undrawn(TorchFunctionMode):
    """`torch.nn.init` does nothing."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if getattr(func, "__module__", None) == nn.init.__name__:
            return named.get("tensor", *args[:1])
        return func(*args, **named)


@contextmanager
def blank_weights() -> Iterator[None]:
    """What is made within has no weights, and no time is spent on drawing them: not even on the meta device, where
    torch imports its compiler in order to draw nothing, which takes as long as torch itself.
    """
    with torch.device("meta"), _Undrawn():
        yield
