"""The picture of a pipeline's result: one panel a stage, its metric over the run beside the baseline."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

Curve = list[tuple[int, float]]
OUTLIER = 5.0


def read_curve(folder: Path, tag: str) -> Curve:
    """(step, value) of a scalar in a run's TensorBoard files; a resumed run's later value of a step wins."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    if tag not in events.Tags()["scalars"]:
        return []
    return sorted({event.step: event.value for event in events.Scalars(tag)}.items())


def result_figure(panels: Sequence[tuple[str, str, Curve, dict[str, Any] | None]]) -> Any:
    """A figure with a panel for each (stage, metric, curve, baseline).

    Args:
        panels: baseline is `{"name", "value"}` or None.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(panels), 3.0), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (stage, metric, curve, baseline) in zip(axes, panels, strict=True):
        # An untrained model's perplexity would flatten everything that follows it.
        shown = curve[1:] if len(curve) > 2 and curve[0][1] > OUTLIER * curve[1][1] > 0 else curve
        axis.plot([step for step, _ in shown], [value for _, value in shown], marker="o", markersize=3)
        if baseline is not None:
            axis.axhline(baseline["value"], color="0.5", linestyle="--", label=baseline["name"].strip("()"))
            axis.legend(frameon=False)
        axis.set(title=stage, xlabel="optimizer step", ylabel=f"held-out {metric.replace('_', ' ')}")
    return figure
