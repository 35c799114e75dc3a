"""A run's seconds by phase, by the names that Lightning gives to what it does."""

import re
import time
from collections import defaultdict

import torch
from lightning.pytorch.profilers import Profiler

REST = "rest"
PHASES = (
    (r"\[PPOModule\](sampling|scoring)", None),
    (r"\[Strategy\].*\.(training_step)", "forward"),
    (r"\[Strategy\].*\.(backward)", "backward"),
    (r"\[LightningModule\].*\.(optimizer_step|configure_gradient_clipping|optimizer_zero_grad)", "optimizer"),
    (r".*(train_dataloader_next|batch_to_device|transfer_batch_to_device)", "data"),
    (r"\[Callback\](.*)", "callbacks"),
)
"""Pattern of an action, and the phase it belongs to; None: that which the pattern's group says."""


class Phases(Profiler):
    """Each moment belongs to the innermost action that is a phase; what none claims is `rest`. The device is waited for
    where a phase changes, so that each pays for its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.device = torch.device("cpu")
        self._open = [(REST, REST)]
        self.restart()

    @property
    def now(self) -> str:
        """The phase of this moment."""
        return self._open[-1][1]

    def restart(self) -> None:
        """Forget what was measured."""
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._since = time.perf_counter()

    def seconds(self) -> dict[str, float]:
        """Of each phase since the last start; together all the time there was."""
        self._turn()
        return dict(self._seconds)

    def start(self, action_name: str) -> None:
        """An action begins; one that is no phase is a part of that around it."""
        if (phase := phase_of(action_name)) is not None:
            self._turn()
            self._open.append((action_name, phase))

    def stop(self, action_name: str) -> None:
        """It ends."""
        if self._open[-1][0] == action_name:
            self._turn()
            self._open.pop()

    def _turn(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self._seconds[self.now] += now - self._since
        self._since = now


def phase_of(action: str) -> str | None:
    """The phase that an action opens, None where it is a part of another."""
    for pattern, phase in PHASES:
        if found := re.fullmatch(pattern, action):
            return phase or found[1]
    return None
