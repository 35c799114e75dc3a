"""Figures are drawn of whatever a run has: much, one, none, or what is not finite; what they show is what was given."""

import io
import math

import numpy as np
import pytest

from gpt_modules.training.callbacks.figures import (
    confusion_figure,
    frontier_figure,
    parts_figure,
    reliability_figure,
)


def drawn(figure):
    """Rendered, as TensorBoard has it done; warnings are errors here."""
    figure.savefig(io.BytesIO())
    return figure.axes[0]


def line(axes, number):
    return np.array(axes.lines[number].get_xdata()).tolist(), np.array(axes.lines[number].get_ydata()).tolist()


def test_the_reliability_figure_shows_both_orders_of_a_pair():
    """Three sure and right, one sure and wrong: at 0.85 predicted, 75 % right; mirrored at 0.15."""
    predicted, stated = line(drawn(reliability_figure(np.array([0.85, 0.85, 0.85, 0.15]))), 1)
    assert predicted == pytest.approx([0.15, 0.85])
    assert stated == pytest.approx([0.25, 0.75])


@pytest.mark.parametrize(
    ("preferences", "expected"),
    [
        (np.array(0.85), [0.15, 0.85]),  # one pair, as metrics give it: without a dimension
        (np.array([0.85]), [0.15, 0.85]),
        (np.array([]), []),
        (np.array([math.nan, 0.85, math.inf]), [0.15, 0.85]),
        (np.array([1.0, 0.0]), [0.0, 1.0]),
    ],
)
def test_reliability_of_few(preferences, expected):
    assert line(drawn(reliability_figure(preferences)), 1)[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kl", "score", "expected"),
    [
        ([4.0, 9.0], [1.0, 2.0], ([2.0, 3.0], [1.0, 2.0])),
        ([], [], ([], [])),
        ([-1.0], [0.5], ([0.0], [0.5])),
        ([math.nan, 4.0, math.inf, 1.0], [1.0, math.nan, 1.0, 3.0], ([1.0], [3.0])),
    ],
)
def test_the_frontier(kl, score, expected):
    assert line(drawn(frontier_figure(kl, score)), 0) == expected


def test_the_parts_of_an_accuracy():
    parts = {"accuracy_round/1": 0.25, "accuracy_round/2": 1.0, f"accuracy_labeler/costs $x_$ {'x' * 60}": 0.5}
    axes = drawn(parts_figure(parts, 0.6))
    assert [bar.get_width() for bar in axes.patches] == [0.25, 1.0, 0.5]
    assert [text.get_text() for text in axes.texts] == ["0.25", "1.00", "0.50"]
    words = [tick.get_text() for tick in axes.get_yticklabels()]
    assert words == ["round: 1", "round: 2", f"labeler: costs $x_$ {'x' * 20}"]
    assert line(axes, 0)[0] == [0.6, 0.6]
    colors = [bar.get_facecolor() for bar in axes.patches]
    assert colors[0] == colors[1] != colors[2]
    assert drawn(parts_figure({}, math.nan)).patches[:] == []


def test_the_confusion_figure_shows_counts_and_names():
    axes = drawn(confusion_figure(np.array([[3, 1], [0, 0]]), ["good", "costs $x_$"]))
    assert [text.get_text() for text in axes.texts] == ["3", "1", "0", "0"]
    assert axes.images[0].get_array().tolist() == [[0.75, 0.25], [0.0, 0.0]]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["good", "costs $x_$"]


def test_of_many_classes_the_shades_are_drawn():
    """A number in each of 22,801 cells took two minutes."""
    axes = drawn(confusion_figure(np.eye(151, dtype=int), [str(number) for number in range(151)]))
    assert not axes.texts
    assert len(axes.get_xticklabels()) == 19
    assert axes.get_xticklabels()[1].get_text() == "8"
