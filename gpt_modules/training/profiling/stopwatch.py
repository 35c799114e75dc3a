"""A run that is measured for some seconds and then ends."""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import lightning.pytorch as L
import torch

from gpt_modules.training.callbacks.peaks import copied_bytes, peak_flops
from gpt_modules.training.callbacks.throughput import multiplied_in, peak_memory
from gpt_modules.training.profiling.phases import Phases
from gpt_modules.training.profiling.roofline import Roofline, Work

WARMUP = {"step": 3, "iteration": 1}


class Found(NamedTuple):
    """What was measured.

    Args:
        processes: of the run; what is not said to be of all of them is of this one.
        unit, amount: what is counted, such as tokens, and how many of it there were on all devices.
        piece, pieces: step, or iteration of a procedure with a rollout, and how many of them.
        seconds: by phase; together the time that was measured.
        work: by phase, of one more piece.
        dtype, peak: of products of matrices, and FLOP/s in them.
        copied: bytes a second, read and written.
        memory: bytes at the peak, before operations were counted; of the process that holds most.
        busy: processor seconds of a process a second, of all its threads; the mean of all processes.
    """

    processes: int

    unit: str
    amount: float
    piece: str
    pieces: int
    seconds: Mapping[str, float]
    work: Mapping[str, Work]
    dtype: str
    peak: float
    copied: float
    memory: float
    busy: float


class Stopwatch(L.Callback):
    """Lets a run warm up, measures it, counts the operations of one more piece of work, and ends it there.

    Args:
        phases: the trainer's profiler.
        seconds: to measure; the piece in which they end is the last.
    """

    def __init__(self, phases: Phases, seconds: float) -> None:
        self.phases, self.seconds = phases, seconds
        self.found: Found | None = None
        self._measured: Found | None = None
        self._roofline: Roofline | None = None
        self._steps = 0
        self._unit, self._count, self._pieces, self._began, self._worked = "", 0.0, 0, 0.0, 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What the machine can."""
        self.phases.device = device = pl_module.device
        self._dtype = multiplied_in(str(trainer.precision))
        self._peaks = {dtype: peak_flops(device, dtype) for dtype in {torch.float32, self._dtype}}
        self._copied = copied_bytes(device)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """A step is a piece of work where no rollout is."""
        count, self._unit = pl_module.work(batch)
        self._count += count
        if self._unit != "episodes" and trainer.global_step > self._steps:  # a batch that only accumulates ends none
            self._steps = trainer.global_step
            self._end_piece(trainer, pl_module, "step")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """An iteration is where one is."""
        if self._unit == "episodes":
            self._end_piece(trainer, pl_module, "iteration")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A run that ends by itself is not to count on."""
        self._count_no_more()

    def _end_piece(self, trainer: L.Trainer, pl_module: L.LightningModule, piece: str) -> None:
        self._pieces += 1
        pieces = self._pieces - WARMUP[piece]
        if self._roofline is not None and self._measured is not None:
            roofline = self._roofline
            self._count_no_more()
            self.found = self._measured._replace(work=roofline.close())
            trainer.should_stop = True
        elif pieces == 0:
            self._count, self._began, self._worked = 0.0, time.perf_counter(), time.process_time()
            self.phases.restart()
        elif pieces > 0 and self._is_over(trainer):
            self._measured = self._measure(trainer, pl_module.device, piece)
            self._begin_to_count()

    def _is_over(self, trainer: L.Trainer) -> bool:
        """As all processes see it."""
        over = time.perf_counter() - self._began >= self.seconds
        return trainer.strategy.reduce_boolean_decision(over, all=False) if trainer.world_size > 1 else over

    def _measure(self, trainer: L.Trainer, device: torch.device, piece: str) -> Found:
        seconds = self.phases.seconds()
        busy = (time.process_time() - self._worked) / sum(seconds.values())

        def over_all(value: float, how: str) -> float:
            return float(trainer.strategy.reduce(torch.tensor(value, device=device), reduce_op=how))

        return Found(
            trainer.world_size, self._unit, over_all(self._count, "sum"), piece, self._pieces - WARMUP[piece],
            seconds, {}, str(self._dtype).removeprefix("torch."), self._peaks[self._dtype], self._copied,
            over_all(peak_memory(device), "max"), over_all(busy, "mean"),
        )  # fmt: skip

    def _begin_to_count(self) -> None:
        torch.compiler.set_stance("force_eager")  # a compiled step hides what is in it
        exact = self._peaks[torch.float32]
        self._roofline = Roofline(lambda dtype: self._peaks.get(dtype, exact), self._copied, lambda: self.phases.now)
        self._roofline.__enter__()  # type: ignore[no-untyped-call]

    def _count_no_more(self) -> None:
        if self._roofline is not None:
            self._roofline.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._roofline = None
            torch.compiler.set_stance("default")
