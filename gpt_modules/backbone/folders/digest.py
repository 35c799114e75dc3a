"""A model is known by what it computes with."""

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gpt_modules.backbone.config import DecoderConfig


def model_digest(model: nn.Module) -> str:
    """SHA-256 of a model as it was read: its configuration and every weight."""
    config = model.config
    assert isinstance(config, DecoderConfig)
    return digest_of(config, model.state_dict())


def digest_of(config: DecoderConfig, tensors: Mapping[str, Tensor]) -> str:
    """The same of a configuration and of tensors by name."""
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
