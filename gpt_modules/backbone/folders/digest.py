"""A model is known by what it computes with."""

import hashlib
import json
from typing import Any

import torch
from torch import nn


def model_digest(model: nn.Module) -> str:
    """SHA-256 of a model as it was read: its configuration and every weight."""
    config: Any = model.config
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
