"""What a checkpoint may hold: data that can be read again without running code."""

import io
from collections import OrderedDict
from typing import Any

import torch

from gpt_modules.errors import UserError

_VALUES = {type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device}


def expect_plain(value: Any, name: str) -> None:
    """Refuse, before it is written, what `torch.load(weights_only=True)` would not read: a checkpoint with it is none.

    Args:
        name: where the value stands, such as "callbacks: EarlyStopping".

    Raises:
        UserError: the first such value, with its place and type.
    """
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            expect_plain(key, name)
            expect_plain(item, f"{name}: {key}" if name else f"{key}")
    elif type(value) in (list, tuple, set):
        for item in value:
            expect_plain(item, name)
    elif type(value) not in _VALUES and not isinstance(value, torch.Tensor) and not _is_read_again(value):
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        expected = (
            "numbers and text of Python's, tensors, lists and mappings: a checkpoint is read without running code"
        )
        raise UserError(f"{name}: found {kind}, expected {expected}")


def _is_read_again(value: Any) -> bool:
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    except Exception:  # of pickle's, of torch's, and of the class itself
        return False
    return True
