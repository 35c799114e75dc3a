"""The picture of a pipeline's result shows what the runs logged."""

import io

from rich.console import Console
from torch.utils.tensorboard import SummaryWriter

from gpt_modules.commands.pipelines.document import Pipeline, Stage
from gpt_modules.commands.pipelines.report import Panel, read_curve, result_figure, result_tables
from gpt_modules.storage.summary import Baseline, Summary, write_summary


def test_a_resumed_runs_later_value_wins(tmp_path):
    for name, values in (("99", {1: 5.0, 2: 4.0}), ("100", {2: 3.5, 3: 3.0})):  # not in the order of their names
        with SummaryWriter(str(tmp_path / name)) as writer:
            for step, value in values.items():
                writer.add_scalar("val/perplexity", value, step)
        (written,) = (tmp_path / name).iterdir()
        written.rename(tmp_path / f"events.out.tfevents.1.host.{name}")
    assert read_curve(tmp_path, "val/perplexity") == [(1, 5.0), (2, 3.5), (3, 3.0)]
    assert read_curve(tmp_path, "val/absent") == []


def test_a_panel_a_stage_with_its_baseline_and_without_the_untrained_perplexity():
    curve = [(0, 2000.0), (10, 80.0), (20, 60.0)]
    figure = result_figure(
        [
            Panel("pretraining", "val/perplexity", [curve], Baseline("(3-gram)", 57.0)),
            Panel("ppo", "val/score", [[(0, -1.0), (5, 1.0)], [(5, 0.5), (7, 1.5)]]),
        ]
    )
    left, right = figure.axes
    assert left.lines[0].get_ydata().tolist() == [80.0, 60.0]
    assert list(left.lines[1].get_ydata()) == [57.0, 57.0]
    assert left.get_legend().texts[0].get_text() == "3-gram"
    assert (left.get_ylabel(), left.get_xlabel()) == ("held-out perplexity", "optimizer step")
    assert right.lines[0].get_xdata().tolist() == [0, 5]
    assert right.lines[1].get_xdata().tolist() == [5, 7]  # another round, by another reward: no line joins them


def test_short_missing_and_infinite_curves_are_drawn_as_they_are(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        for step, value in enumerate((float("nan"), 2.0, float("inf"))):
            writer.add_scalar("val/loss", value, step)
    assert read_curve(tmp_path, "val/loss") == [(1, 2.0)]
    panels = [
        Panel("a$b", "loss", [[]], None),
        Panel("c", "x", [[(1, 2.0)]], Baseline("$\\frac", None)),
        Panel("d", "y", [[]], Baseline("$x", 1.0)),
    ]
    figure = result_figure(panels)
    figure.savefig(tmp_path / "a.png")  # a dollar sign begins no formula
    assert [len(axis.lines[0].get_xdata()) for axis in figure.axes] == [0, 1, 0]


def test_a_table_says_what_was_not_logged(tmp_path):
    stages = [Stage("a[b]", "r.yaml", metrics=["val/loss", "val/los"]), Stage("c", "r.yaml", metrics=["val/loss"])]
    pipeline = Pipeline(tmp_path, stages)
    for stage in stages:
        (tmp_path / stage.name).mkdir()
    write_summary(
        tmp_path / "a[b]", Summary({"val/loss": 2.5}, {"val/loss": 1.25}, 90.0, 1, {"val/loss": Baseline("n", 2.0)})
    )
    write_summary(tmp_path / "c", Summary({"val/loss": 2.5}, {"val/loss": float("nan")}, 30.0))
    output = io.StringIO()
    Console(file=output, width=140).print(*result_tables(pipeline))
    rows = [line.split() for line in output.getvalue().splitlines() if "los" in line]
    assert [[cell for cell in row if cell != "│"] for row in rows] == [
        ["a[b]", "loss", "2.500", "1.250", "2.000", "n", "1.5"],
        ["los", "(not", "logged)", "-", "-"],
        ["c", "loss", "2.500", "-", "0.5"],
    ]
