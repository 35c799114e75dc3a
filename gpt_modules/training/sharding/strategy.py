"""The strategy `fsdp2`: Lightning's over all devices, with checkpoints that verify and hold no pickle."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch.distributed.tensor import DTensor, Shard
from torch.optim import Optimizer

from gpt_modules.errors import UserError, expect
from gpt_modules.storage.durable import discard, room_for, temporary_for
from gpt_modules.training.callbacks.checkpointing import VerifiedCheckpointIO, digest_path
from gpt_modules.training.callbacks.plain_data import expect_plain
from gpt_modules.training.processes import as_one
from gpt_modules.training.sharding.files import Stored, finish_folder, parted, rows_of, shard_name, write_part
from gpt_modules.training.sharding.tensors import local, shard_of, shard_state

log = logging.getLogger(__name__)


class FSDP2Strategy(ModelParallelStrategy):
    """`trainer.strategy: fsdp2`: shards over all devices of all machines.

    A checkpoint is a folder, in which each process writes its own part, see `shard_files`: Lightning's own ones hold
    pickles that run on loading. Any number of processes reads it, and a file of one device as well.
    """

    def __init__(self) -> None:
        super().__init__(data_parallel_size=1, tensor_parallel_size=1, save_distributed_checkpoint=False)

    @property
    def checkpoint_io(self) -> CheckpointIO:
        """A `VerifiedCheckpointIO`, where no other was given: Lightning's own writes no folders."""
        if self._checkpoint_io is None:
            self._checkpoint_io = VerifiedCheckpointIO()
        return self._checkpoint_io

    @checkpoint_io.setter
    def checkpoint_io(self, io: CheckpointIO) -> None:
        expected = "a VerifiedCheckpointIO, or none, beside fsdp2, whose checkpoints are folders"
        expect(isinstance(io, VerifiedCheckpointIO), "trainer.plugins", type(io).__name__, expected)
        self._checkpoint_io = io

    def setup_environment(self) -> None:
        """As of Lightning, over the devices that there are: its own default is tensor parallelism within a machine."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: L.Trainer) -> None:
        """As of Lightning; a run that nothing refused and that splits nothing says so."""
        if self.world_size == 1:
            log.warning("trainer.strategy: fsdp2 on one device splits nothing; more of them: trainer.devices")
        super().setup(trainer)

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Before it, as under every other strategy: models are in shards once they are configured, and the place in the
        data and the steps that were made decide on the length of an epoch and of the run.
        """
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Optimizer states are restored by `load_optimizer_state_dict`, not along with the file."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Weights in shards."""
        state: dict[str, Any] = self.lightning_module.state_dict()  # type: ignore[union-attr]
        return state

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The same for an optimizer, in the form of its own `state_dict`."""
        own = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return own.state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Each process writes its part; the folder has its name once all of them are on disk.

        Raises:
            UserError: on all processes, when one of them could not write, or what is to be written could not be read.
        """
        assert isinstance(self.checkpoint_io, VerifiedCheckpointIO)
        expect_plain(checkpoint, "")
        target, name = self.checkpoint_io.target(filepath), shard_name(self.global_rank, self.world_size)
        folder = Path(self.broadcast(str(temporary_for(target))))
        rest, parts = parted(checkpoint, lambda value: local(value) if isinstance(value, DTensor) else None)
        try:
            self._together(target, folder.mkdir if self.is_global_zero else None)
            digests = dict(self._together(target, lambda: (name, write_part(folder, name, parts))))
            finish = partial(finish_folder, folder, target, digest_path(target), rest, digests)
            self._together(target, finish if self.is_global_zero else None)
        finally:
            if self.is_global_zero:
                discard(folder)

    def _together(self, target: Path, write: Callable[[], Any] | None) -> list[Any]:
        """What each process's `write` returns; what fails on one fails on all."""

        def own() -> Any:
            with room_for(target):
                return None if write is None else write()

        return as_one(own)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """A process reads its own rows only: of a folder as shards, of a file, which is mapped into memory, later."""
        assert isinstance(self.checkpoint_io, VerifiedCheckpointIO)
        return self.checkpoint_io.load_checkpoint(Path(checkpoint_path), mmap=True, own=self._own)

    def _own(self, stored: Stored) -> DTensor:
        mesh = self.device_mesh["data_parallel"]
        rows = stored.rows(*rows_of(mesh.get_local_rank(), mesh.size(), stored.shape[0]))
        stride = torch.empty(stored.shape, device="meta").stride()
        return DTensor.from_local(rows, mesh, [Shard(0)], run_check=False, shape=stored.shape, stride=stride)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Keep this process's part of whole weights."""
        module = self.lightning_module
        assert module is not None
        own, stored = module.state_dict(), checkpoint["state_dict"]
        module.load_state_dict({name: shard_of(value, own.get(name)) for name, value in stored.items()}, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Keep this process's part of whole optimizer states."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(shard_state(optimizer, state))


StrategyRegistry.register("fsdp2", FSDP2Strategy, description="weights, gradients and optimizer state in shards")


def refuse_sharding(module: L.LightningModule, why: str, what: str = "", instead: str = "auto or ddp") -> None:
    """Called by a procedure for which it is nothing, or of a setting for which it is not.

    Args:
        why: in words.
        what: key of the setting; left out: the procedure itself.
        instead: what is expected of the strategy.

    Raises:
        UserError: under a strategy that shards.
    """
    if module.device_mesh is not None:
        found = type(module.trainer.strategy).__name__
        beside = what or type(module).__name__
        raise UserError(f"trainer.strategy: found {found} beside {beside}, expected {instead}: {why}")
