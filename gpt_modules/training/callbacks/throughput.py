"""How fast a run trains, how much of the device that takes, and how much memory."""

import resource
import sys
import time
from typing import Any

import lightning.pytorch as L
import torch

from gpt_modules.training.callbacks.peaks import peak_flops
from gpt_modules.training.callbacks.writer import at_log_step
from gpt_modules.training.hyperparameters import expect_idle, expect_number


class Throughput(L.Callback):
    """Logs tokens or episodes a second, the peak of memory in GB (of the device, or of the process on a CPU), and where
    tokens are counted the share of the device's peak that the model's operations take (MFU).

    Episodes are sampled before the first of an iteration's steps: their rate is that of whole iterations.

    Args:
        peak_flops: dense FLOP/s of one device at the run's precision (an H100 in bf16: 989e12); left out: that of its
            datasheet, or the most that was measured, when the run starts and, on a CPU, before each validation, or what
            the run itself reaches where that is more: other processes may have been at work meanwhile.
    """

    def __init__(self, peak_flops: float | None = None) -> None:
        if peak_flops is not None:
            expect_number("throughput.peak_flops", peak_flops, "(0, inf)")
        self.peak_flops, self._peak = peak_flops, peak_flops
        self._count = 0.0
        self._since = 0.0
        self._begun = False  # the window with an epoch
        self._rate: float | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a peak to compare with nothing.

        Raises:
            UserError: the procedure does not count tokens.
        """
        if not hasattr(pl_module, "flops_per_token"):
            why = f"{type(pl_module).__name__} does not count tokens, so no utilisation follows"
            expect_idle("throughput.peak_flops", self.peak_flops, [None], why)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find the peak. A run that resumes inside an epoch sees no start of it."""
        self._measure(trainer, pl_module, 0.1)
        self._restart()

    def _measure(self, trainer: L.Trainer, pl_module: L.LightningModule, seconds: float) -> None:
        if self.peak_flops is None and hasattr(pl_module, "flops_per_token"):
            found = peak_flops(pl_module.device, multiplied_in(str(trainer.precision)), seconds)
            self._peak = max(self._peak or 0.0, found)

    def on_train_epoch_start(self, *_: Any) -> None:
        """The time a rollout took belongs to the epoch that it opens."""
        self._begun = self._count == 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count without a look at the device; divide at log steps."""
        count, unit = pl_module.work(batch)
        self._count += count * trainer.world_size
        told, whole = at_log_step(trainer), unit == "episodes"
        if self._count and (trainer.is_last_batch if whole else told):
            if self._begun or not whole:
                self._rate = self._count / (time.perf_counter() - self._since)
            self._restart()
        if told:
            self._tell(trainer, pl_module, unit)

    def _tell(self, trainer: L.Trainer, pl_module: Any, unit: str) -> None:
        pl_module.log("perf/memory_gb", peak_memory(pl_module.device) / 1e9)
        if self._rate is None:
            return
        pl_module.log(f"perf/{unit}_per_s", self._rate)
        if self._peak is not None:
            reached = pl_module.flops_per_token() * self._rate / trainer.world_size
            self._peak = self.peak_flops or max(self._peak, reached)
            pl_module.log("perf/mfu", reached / self._peak)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validation is no training time: drop the window it would stretch."""
        if pl_module.device.type == "cpu" and trainer.state.fn == "fit":  # elsewhere it would take memory from the run
            self._measure(trainer, pl_module, 0.02)
        self._restart()

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        """The next window begins here."""
        self._restart()

    def _restart(self) -> None:
        self._count, self._since, self._begun = 0.0, time.perf_counter(), False


def peak_memory(device: torch.device) -> int:
    """Bytes at the peak: of a CUDA device what torch has allocated, else what the process holds."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else held * 1024


def multiplied_in(precision: str) -> torch.dtype:
    """The type in which a run of this precision multiplies matrices."""
    return torch.bfloat16 if precision.startswith("bf16") else torch.float16 if "16" in precision else torch.float32
