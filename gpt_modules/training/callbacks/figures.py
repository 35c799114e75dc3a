"""Figures for TensorBoard; matplotlib is imported when one is drawn, and never opens a window."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

READABLE = 20  # classes whose numbers can be read, and drawn in less than a second

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _figure() -> tuple["Figure", Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 4.0), layout="constrained")
    return figure, figure.subplots()


def reliability_figure(preferences: NDArray[np.floating[Any]], bins: int = 10) -> "Figure":
    """Predicted probability that the first answer is better against how often it was (Guo et al. 2017, figure 1).

    Args:
        preferences: (N,) predicted probability of the preference that people stated; N may be 0, and what is not
            finite is left out. Each pair counts in both orders, (p, right) and (1 - p, wrong), as the order of a pair
            means nothing.
    """
    preferences = preferences.reshape(-1)
    preferences = preferences[np.isfinite(preferences)]
    predicted = np.concatenate([preferences, 1 - preferences])
    stated = np.concatenate([np.ones_like(preferences), np.zeros_like(preferences)])
    cell = np.minimum((predicted * bins).astype(int), bins - 1)
    filled = [b for b in range(bins) if (cell == b).any()]
    figure, axes = _figure()
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", label="calibrated")
    axes.plot(
        [predicted[cell == b].mean() for b in filled],
        [stated[cell == b].mean() for b in filled],
        marker="o",
        label="model",
    )
    axes.set(xlabel="predicted preference", ylabel="stated preference", xlim=(0, 1), ylim=(0, 1), title="Reliability")
    axes.legend()
    return figure


def parts_figure(accuracies: Mapping[str, float], whole: float) -> "Figure":
    """Accuracy of parts of the held-out pairs, a bar each, beside that of all pairs.

    Args:
        accuracies: by `kind/part`, as `accuracy_round/1`; parts of a kind stand together, in one colour.
        whole: of all pairs.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 1.2 + 0.24 * len(accuracies)), layout="constrained")
    axes = figure.subplots()
    kinds = list(dict.fromkeys(name.partition("/")[0] for name in accuracies))
    colors = [f"C{kinds.index(name.partition('/')[0])}" for name in accuracies]
    axes.barh(range(len(accuracies)), list(accuracies.values()), color=colors)
    axes.axvline(whole, color="0.3", linestyle="--")
    for place, value in enumerate(accuracies.values()):
        axes.text(0.01, place, f"{value:.2f}", va="center", color="white" if value > 0.1 else "black")
    axes.set(yticks=range(len(accuracies)), xlim=(0, 1), xlabel="pairs in the right order", title=f"All: {whole:.3f}")
    words = [name.removeprefix("accuracy_").replace("/", ": ")[:40] for name in accuracies]
    axes.set_yticklabels(words, parse_math=False)
    axes.invert_yaxis()
    return figure


def frontier_figure(kl: list[float], score: list[float]) -> "Figure":
    """Score against the square root of the sequence KL (Bai et al. 2022; Gao et al. 2023): how much reward a nat buys.

    Args:
        kl: nats a sequence, one value a validation, in order.
        score: mean reward at the same points; a point that is not finite is left out.
    """
    figure, axes = _figure()
    points = np.array([kl, score], dtype=np.float64).reshape(2, -1)
    points = points[:, np.isfinite(points).all(0)]
    axes.plot(np.sqrt(np.maximum(points[0], 0.0)), points[1], marker="o")
    axes.set(xlabel="sqrt(KL to the reference), nats a sequence", ylabel="mean score", title="Reward against KL")
    return figure


def confusion_figure(counts: NDArray[np.integer[Any]], labels: Sequence[str]) -> "Figure":
    """How often each class (row) was taken for each (column); the shade is the share of the row.

    Args:
        counts: (L, L) examples; of many classes the numbers are left out, and every n-th name stands for those beside
            it.
        labels: L names.
    """
    figure, axes = _figure()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    for row, column in np.ndindex(*counts.shape) if len(labels) <= READABLE else ():
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", color=color)
    places = range(0, len(labels), 1 + len(labels) // READABLE)
    names = [labels[place] for place in places]
    axes.set(xticks=places, yticks=places, xlabel="predicted", ylabel="label", title="Confusion")
    axes.set_xticklabels(names, rotation=30, ha="right", parse_math=False)  # a name may hold a dollar sign
    axes.set_yticklabels(names, parse_math=False)
    return figure
