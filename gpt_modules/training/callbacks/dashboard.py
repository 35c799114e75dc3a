"""What a run shows in TensorBoard, and in which order a PPO run is looked at when something is wrong."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger


class RunLogger(TensorBoardLogger):
    """TensorBoard, where the same values told twice are written once: `ExactCheckpoint` has a step logged before it
    saves it, and Lightning logs it again.
    """

    _latest: tuple[int | None, Mapping[str, Any]] | None = None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write scalars, unless they are the latest that were written."""
        if self._latest != (step, dict(metrics)):
            self._latest = (step, dict(metrics))
            super().log_metrics(metrics, step)


PPO_LAYOUT = {
    "1 objective": {
        "score": ["Multiline", ["objective/score", "val/score"]],
        "KL to the SFT model, nats a sequence": ["Multiline", ["objective/kl", "val/kl"]],
        "reward after the penalty": ["Multiline", ["objective/reward"]],
        "KL coefficient": ["Multiline", ["objective/kl_coef"]],
        "entropy": ["Multiline", ["objective/entropy", "policy/entropy"]],
    },
    "2 policy": {
        "approximate KL of the update": ["Multiline", ["policy/approx_kl"]],
        "clip fraction": ["Multiline", ["policy/clip_fraction", "value/clip_fraction"]],
        "ratio": ["Multiline", ["policy/ratio"]],
        "loss": ["Multiline", ["loss/policy"]],
    },
    "3 critic": {
        "explained variance": ["Multiline", ["value/explained_variance"]],
        "loss": ["Multiline", ["loss/value"]],
    },
    "4 responses": {
        "length": ["Multiline", ["response/length", "val/length"]],
        "ended": ["Multiline", ["response/ended", "val/ended"]],
    },
    "5 speed": {
        "episodes per second": ["Multiline", ["perf/episodes_per_s"]],
        "seconds of a rollout": ["Multiline", ["perf/rollout_seconds"]],
    },
}
