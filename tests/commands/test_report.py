"""The picture of a pipeline's result shows what the runs logged."""

from torch.utils.tensorboard import SummaryWriter

from gpt_modules.commands.report import read_curve, result_figure


def test_a_resumed_runs_later_value_wins(tmp_path):
    for values in ({1: 5.0, 2: 4.0}, {2: 3.5, 3: 3.0}):
        with SummaryWriter(str(tmp_path)) as writer:
            for step, value in values.items():
                writer.add_scalar("val/perplexity", value, step)
    assert read_curve(tmp_path, "val/perplexity") == [(1, 5.0), (2, 3.5), (3, 3.0)]
    assert read_curve(tmp_path, "val/absent") == []


def test_a_panel_a_stage_with_its_baseline_and_without_the_untrained_perplexity():
    curve = [(0, 2000.0), (10, 80.0), (20, 60.0)]
    figure = result_figure(
        [
            ("pretraining", "perplexity", curve, {"name": "(3-gram)", "value": 57.0}),
            ("ppo", "score", [(0, -1.0), (5, 1.0)], None),
        ]
    )
    left, right = figure.axes
    assert left.lines[0].get_ydata().tolist() == [80.0, 60.0]
    assert list(left.lines[1].get_ydata()) == [57.0, 57.0]
    assert left.get_legend().texts[0].get_text() == "3-gram"
    assert right.lines[0].get_xdata().tolist() == [0, 5]
    assert len(right.lines) == 1
