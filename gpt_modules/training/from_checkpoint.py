"""A procedure's module by itself, from a checkpoint of a run of its."""

from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as L
import torch

from gpt_modules.training.callbacks.checkpointing import VerifiedCheckpointIO

ModuleT = TypeVar("ModuleT", bound="FromCheckpoint")


class FromCheckpoint(L.LightningModule):
    """`load_from_checkpoint` of a file, as Lightning has it, and of a folder of shards, whose tensors come whole."""

    @classmethod
    def load_from_checkpoint(cls: type[ModuleT], checkpoint_path: Any, *args: Any, **kwargs: Any) -> ModuleT:
        """A module with the weights and hyper-parameters of a checkpoint; arguments are Lightning's.

        Raises:
            UserError: the folder is damaged, or no checkpoint.
        """
        if isinstance(checkpoint_path, str | Path) and Path(checkpoint_path).is_dir():
            found = VerifiedCheckpointIO().load_checkpoint(checkpoint_path)
            checkpoint_path = BytesIO()
            torch.save({name: value for name, value in found.items() if name != "optimizer_states"}, checkpoint_path)
            checkpoint_path.seek(0)
        return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)
