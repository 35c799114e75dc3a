"""Tells where a process of several stands that has made no step for long. One that waits for ever in its own code, such
as a reward function, keeps all others waiting, and nothing but the line it is at tells it from one that is slow: so
nothing is ended.
"""

import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as L

EVERY, LOOKS = 60.0, 10  # seconds between two looks, and how many in a row find no progress
SHOWN = 3  # calls
_RUNNERS = {"torch", "lightning"}  # packages that call, or wait for others: what they are in is not what is slow


def watch_progress(
    progress: Callable[[], int], tell: Callable[[], None], ended: threading.Event, every: float = EVERY
) -> None:
    """Until it has `ended`, `tell` once for each stretch of so many looks that find the same progress."""
    seen, same = progress(), 0
    while not ended.wait(every):
        now = progress()
        same, seen = same + 1 if now == seen else 0, now
        if same == LOOKS:
            tell()


def calls(frame: FrameType | None) -> list[str]:
    """The innermost calls, outermost first; none where torch or Lightning runs or waits, as for other processes."""
    found: list[str] = []
    while frame is not None and len(found) < SHOWN and not _RUNNERS & set(Path(frame.f_code.co_filename).parts):
        found.insert(0, f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_name})")
        frame = frame.f_back
    return found


def batches_read(trainer: L.Trainer) -> int:
    """By all loops: those of a long validation are progress, too."""
    training = trainer.fit_loop.epoch_loop
    loops = (training, training.val_loop, trainer.validate_loop, trainer.test_loop, trainer.predict_loop)
    return sum(loop.batch_progress.total.ready + loop.batch_progress.total.completed for loop in loops)


class StallReport(L.Callback):
    """A line of the process, among several, that has made no step for ten minutes in code of its own; and of the first
    one in any case, so that a run that stands still says so.
    """

    def __init__(self) -> None:
        self._ended = threading.Event()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Begin to look."""
        if trainer.world_size > 1:
            self._ended.clear()
            tell = self._teller(trainer.global_rank, threading.get_ident())
            arguments = (partial(batches_read, trainer), tell, self._ended)
            threading.Thread(target=watch_progress, args=arguments, daemon=True, name="stall-report").start()

    @staticmethod
    def _teller(rank: int, thread: int) -> Callable[[], None]:
        def tell() -> None:
            found = calls(sys._current_frames().get(thread))
            if found or rank == 0:
                at = f"it is at {' > '.join(found)}" if found else "it computes, or waits for another process"
                minutes = EVERY * LOOKS / 60
                sys.stderr.write(f"process {rank}: no step for {minutes:g} minutes; {at}\n")
                sys.stderr.flush()

        return tell

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """It ends."""
        self._ended.set()

    def on_exception(self, *_: Any) -> None:
        """The same."""
        self._ended.set()
