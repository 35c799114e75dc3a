"""What a figure shows, by its lines and labels."""

import numpy as np

from gpt_modules.evaluation.adaptation.comparison import Point
from gpt_modules.evaluation.adaptation.figures import adaptation_figure, sinusoid_figure
from gpt_modules.evaluation.adaptation.functions import FunctionFit
from gpt_modules.evaluation.tasks.metrics import Estimate


def points(losses, accuracy=0.5):
    right = None if accuracy is None else Estimate(accuracy, 0.1)
    curve = [Point("gradient", 4, step, Estimate(loss, 0.1), right) for step, loss in enumerate(losses)]
    return [*curve, Point("in-context", 4, 0, Estimate(1.0, None), right)]


def test_a_loss_that_leaves_the_axis_is_said():
    figure = adaptation_figure(points([2.0, 1.0, float("inf")]), "steps", "4 examples", "inner steps")
    accuracy, loss = figure.axes
    assert accuracy.get_ylabel() == "query accuracy"
    assert loss.get_ylabel() == "query loss (cut off at 4)"
    assert loss.get_ylim() == (0.0, 4.0)
    figure.draw_without_rendering()


def test_losses_that_are_beyond_a_float_from_the_start():
    """A run that diverged ends with a figure, not with a traceback."""
    lost = [Point("gradient", 4, step, Estimate(float("inf"), None), None) for step in (0, 1)]
    adaptation_figure(lost, "steps", "", "inner steps").draw_without_rendering()


def test_a_loss_that_stays_is_shown_whole():
    figure = adaptation_figure(points([2.0, 1.0, 3.0], accuracy=None), "steps", "4 examples", "inner steps")
    (loss,) = figure.axes
    assert loss.get_ylabel() == "query loss"
    assert loss.get_ylim()[1] > 3.0
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["gradient", "in-context"]


def test_frozen_weights_are_a_level_over_steps_and_a_point_over_examples():
    over_steps = adaptation_figure(points([2.0]), "steps", "", "inner steps").axes[1]
    assert len(over_steps.containers) == 0
    over_examples = adaptation_figure(points([2.0]), "support", "", "support examples").axes[1]
    assert len(over_examples.containers) == 2


def test_a_panel_a_function():
    x = np.linspace(-5, 5, 11)
    fit = FunctionFit((x[:3], np.sin(x[:3])), x, np.sin(x), {0: 0 * x, 1: 1e9 * x, 10: np.sin(x)})
    figure = sinusoid_figure([fit, fit])
    assert len(figure.axes) == 2
    labels = [line.get_label() for line in figure.axes[0].lines]
    assert labels == ["truth", "before", "after 1 step", "after 10 steps", "support"]
    assert figure.axes[0].get_ylim()[1] < 2.0, "what diverged does not flatten the rest"
