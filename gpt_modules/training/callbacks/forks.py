"""A process that code of the user's forks while a Trainer is at work, and that would leave by an exception."""

import os
from typing import Any

import lightning.pytorch as L

from gpt_modules.forks import end


class ForksEnd(L.Callback):
    """Ends it, before what other callbacks and loggers do of a run that failed: the run is its parent's, and goes on.
    The first of all callbacks.
    """

    def __init__(self) -> None:
        self._process: int | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Whose run it is."""
        self._process = os.getpid()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> Any:
        """End."""
        if self._process is not None and os.getpid() != self._process:
            end(exception)
