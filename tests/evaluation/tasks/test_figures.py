"""What the curve over demonstrations shows, by its lines and labels."""

from gpt_modules.evaluation.tasks.figures import shot_curve_figure
from gpt_modules.evaluation.tasks.metrics import Estimate


def test_a_line_a_task_with_its_errors():
    curves = {"quiz": [(0, Estimate(0.25, 0.1)), (4, Estimate(0.5, 0.2))], "one": [(1, Estimate(0.75, None))]}
    figure = shot_curve_figure(curves, "accuracy", "step 7")
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("demonstrations (K)", "accuracy", "step 7")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["quiz", "one"]
    assert axes.get_xticks().tolist() == [0, 1, 4]
    quiz, one = axes.containers
    assert quiz.lines[0].get_xydata().tolist() == [[0.0, 0.25], [4.0, 0.5]]
    (bars,) = quiz.lines[2]
    assert [segment[:, 1].round(6).tolist() for segment in bars.get_segments()] == [[0.15, 0.35], [0.3, 0.7]]
    (bars,) = one.lines[2]
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [[0.75, 0.75]]
    figure.draw_without_rendering()
