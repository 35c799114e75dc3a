"""Figures of tasks for TensorBoard; matplotlib is imported when one is drawn, and never opens a window."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gpt_modules.evaluation.tasks.metrics import Estimate


def shot_curve_figure(curves: "Mapping[str, Sequence[tuple[int, Estimate]]]", metric: str, title: str) -> "Figure":
    """A metric against the number of demonstrations, one line a task, with standard errors (Brown et al. 2020, figure
    1.2).

    Args:
        curves: task -> (K, estimate), K rising.
        metric: what the estimates are of.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 4.0), layout="constrained")
    axes = figure.subplots()
    for task, points in curves.items():
        errors = [estimate.standard_error or 0.0 for _, estimate in points]
        shots, values = [count for count, _ in points], [estimate.value for _, estimate in points]
        axes.errorbar(shots, values, yerr=errors, marker="o", capsize=2, label=task)
    axes.set(xlabel="demonstrations (K)", ylabel=metric, title=title)
    axes.set_xticks(sorted({count for points in curves.values() for count, _ in points}))
    axes.legend()
    return figure
