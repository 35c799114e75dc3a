"""Which of an iteration's optimizer steps are taken: none any more once the policy is too far from the one that
sampled, for the rest of the rollout says little about it.
"""

import logging
from collections.abc import Mapping

from lightning_utilities.core.rank_zero import rank_zero_only
from torch import Tensor

from gpt_modules.training.rl.settings import EarlyStop

log = logging.getLogger(__name__)


class StepsTaken:
    """Counts an iteration's steps and ends them.

    A step that is left out still has its place: the loader hands out its minibatch, Lightning counts it and the
    schedule goes on, so that a run has the length that it was said to have; weights, moments and averages keep every
    bit.

    Args:
        bounds: how far a step may find the policy, see `EarlyStop`.
    """

    def __init__(self, bounds: EarlyStop) -> None:
        self.bounds, self.taken, self.stopped = bounds, 0, False
        self._told = False

    @property
    def bounded(self) -> bool:
        """Whether there is anything to stop at."""
        return self.bounds != EarlyStop()

    def begin(self) -> None:
        """Of the next iteration."""
        self.taken, self.stopped = 0, False

    def look(self, statistics: Mapping[str, Tensor], iteration: int) -> None:
        """Count the step whose minibatch has these statistics, or stop before it. They are of all processes, which
        decide alike. Reading them waits for the device, so they are read where there is a bound.
        """
        measured = {"kl": "policy/approx_kl", "ratio": "policy/ratio"}
        for name, tag in measured.items():
            bound = getattr(self.bounds, name)
            if bound is not None and not self.stopped and float(statistics[tag]) > bound:
                self.stopped = True
                self._tell(f"{tag} {float(statistics[tag]):.3g} > early_stop.{name} {bound:g}", iteration)
        self.taken += not self.stopped

    def _tell(self, found: str, iteration: int) -> None:
        """Once; what follows is in `update/steps`."""
        if not self._told and getattr(rank_zero_only, "rank", 0) == 0:
            message = "iteration %d ends after %d steps: %s; update/steps has the steps of every iteration"
            log.warning(message, iteration, self.taken, found)
        self._told = True
