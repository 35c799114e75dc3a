"""Sine waves to be learned from a few points (Finn et al. 2017, section 5.1)."""

import numpy as np
from numpy.typing import NDArray

from gpt_modules.data.episodes.families import PointFamily
from gpt_modules.data.splits import Split

AMPLITUDE = (0.1, 5.0)
PHASE = (0.0, np.pi)
X = (-5.0, 5.0)


class Sinusoid(PointFamily):
    """y = A sin(x - phase) with A uniform on [0.1, 5], phase on [0, π], x on [-5, 5]; the loss is the squared error.

    There is a wave for every pair of real numbers: no two episodes share one, of either split.
    """

    def episode(
        self, generator: np.random.Generator, split: Split, support: int, query: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Points of a new wave, both (support + query, 1)."""
        amplitude, phase = generator.uniform(*AMPLITUDE), generator.uniform(*PHASE)
        x = generator.uniform(*X, size=(support + query, 1))
        return x.astype(np.float32), (amplitude * np.sin(x - phase)).astype(np.float32)
