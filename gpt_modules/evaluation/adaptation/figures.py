"""Figures of a comparison for TensorBoard; matplotlib is imported when one is drawn, and never opens a window."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gpt_modules.evaluation.adaptation.comparison import Point
    from gpt_modules.evaluation.adaptation.functions import FunctionFit
    from gpt_modules.evaluation.tasks.metrics import Estimate

Numbers: TypeAlias = NDArray[np.floating[Any]]


def adaptation_figure(
    points: "Sequence[Point]", axis: Literal["steps", "support"], title: str, xlabel: str
) -> "Figure":
    """Accuracy, where there is one, and loss of each way to learn against its steps or examples, with standard errors.

    The loss is cut off at twice what the worst way has before it learns: steps beyond the trained ones may lead
    anywhere.
    """
    from matplotlib.figure import Figure

    metrics = [name for name in ("accuracy", "loss") if any(getattr(point, name) is not None for point in points)]
    figure = Figure(figsize=(2.0 + 4.0 * len(metrics), 3.8), layout="constrained")
    arms = list(dict.fromkeys(point.arm for point in points))
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        shown = [point for point in points if getattr(point, metric) is not None]
        curves = {arm: [(getattr(p, axis), getattr(p, metric)) for p in shown if p.arm == arm] for arm in arms}
        curves = {arm: curve for arm, curve in curves.items() if curve}
        begins = [curve[0][1].value for curve in curves.values() if math.isfinite(curve[0][1].value)]
        top = 2 * max(begins, default=1.0)
        cut = metric == "loss" and any(estimate.value > top for curve in curves.values() for _, estimate in curve)
        for arm, curve in curves.items():
            _draw_arm(axes, arm, curve, f"C{arms.index(arm)}", 10 * top, everywhere=axis == "steps" and len(curve) == 1)
        axes.set(xlabel=xlabel, ylabel=f"query {metric}" + (f" (cut off at {top:.2g})" if cut else ""))
        axes.set_xticks(sorted({getattr(point, axis) for point in points}))
        axes.set_ylim(bottom=0, top=top if cut else 1.03 if metric == "accuracy" else None)
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda at: arms.index(labels[at]))
    figure.legend([handles[at] for at in order], [labels[at] for at in order], loc="outside right upper")
    figure.suptitle(title)
    return figure


def _draw_arm(
    axes: Any, arm: str, curve: "Sequence[tuple[int, Estimate]]", color: str, highest: float, everywhere: bool
) -> None:
    """A line with error bars; of a way that takes no steps, a band over all numbers of them."""
    errors = [estimate.standard_error or 0.0 for _, estimate in curve]
    places, values = [place for place, _ in curve], [min(estimate.value, highest) for _, estimate in curve]
    if everywhere:
        axes.axhline(values[0], color=color, linestyle="--", label=arm)
        axes.axhspan(values[0] - errors[0], values[0] + errors[0], color=color, alpha=0.15, linewidth=0)
    else:
        axes.errorbar(places, values, yerr=errors, color=color, marker="o", markersize=4, capsize=2, label=arm)


def sinusoid_figure(fits: "Sequence[FunctionFit]") -> "Figure":
    """A panel a task: the true function, the points to learn from, and what the network says before and after steps of
    learning (Finn et al. 2017, figure 2).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.6 + 3.4 * len(fits), 3.2), layout="constrained")
    for axes, fit in zip(figure.subplots(1, len(fits), squeeze=False)[0], fits, strict=True):
        axes.plot(fit.x, fit.truth, color="0.2", linewidth=2, label="truth")
        styles = zip(fit.predictions.items(), (":", "--", "-.", "-"), strict=False)
        for (steps, values), style in styles:
            label = "before" if steps == 0 else f"after {steps} step{'s' * (steps > 1)}"
            axes.plot(fit.x, values, linestyle=style, label=label)
        axes.plot(*fit.support, "^", color="tab:purple", label="support")
        reach = 1.3 * float(np.abs(fit.truth).max())  # a prediction that diverged would flatten the rest
        axes.set(xlabel="x", ylim=(-reach, reach))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
    return figure
