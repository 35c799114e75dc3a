"""What a run reads and never trains must be, on resuming, what it was: a reference or a reward that was exported anew
in between would be another task, and nothing would tell.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from gpt_modules.errors import UserError

log = logging.getLogger(__name__)

FUNCTION = "function "  # begins the name of a reward function, where others are folders


def model_digest(model: nn.Module) -> str:
    """SHA-256 of a model as it was read: its configuration and every weight."""
    config: Any = model.config
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_unchanged(found: Mapping[str, str | None], recorded: Mapping[str, str | None]) -> None:
    """Compare what was read with what the checkpoint says was read under the same names. Another name is another
    recipe, and said there; a function whose source has changed is named in the log.

    Raises:
        UserError: a folder holds another model.
    """
    for name, digest in found.items():
        if digest == recorded.get(name, digest):
            continue
        if name.startswith(FUNCTION):
            log.warning("%s: its source is not the one that the checkpoint was trained with", name)
            continue
        raise UserError(
            f"{name}: found another model (SHA-256 {str(digest)[:12]}…) than this run began with, expected "
            f"{str(recorded[name])[:12]}…: put it back, or begin a new run"
        )
