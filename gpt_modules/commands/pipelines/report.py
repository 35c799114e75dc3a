"""What a pipeline's stages reached: tables, a picture of their curves, and what their models say."""

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from gpt_modules.commands.pipelines.document import Pipeline, Stage
from gpt_modules.commands.pipelines.steps import Step, start_folders, steps_of
from gpt_modules.storage.durable import write_durably
from gpt_modules.storage.paths import path_of
from gpt_modules.storage.summary import Baseline, Summary, read_summary

Curve = list[tuple[int, float]]
OUTLIER = 5.0
PANELS = 4  # beside one another
PICTURE = "result.png"


class Panel(NamedTuple):
    """Curves, one a round, with what they are to be compared with, over what is counted."""

    stage: str
    metric: str
    curves: Sequence[Curve]
    baseline: Baseline | None = None
    counted: str = "optimizer step"


# --- tables ---


def result_tables(pipeline: Pipeline) -> list[Table]:
    """A table of the stages that ran once, one of the rounds."""
    once = [step for step in steps_of(pipeline) if step.round is None and (step.stage.metrics or not pipeline.rounds)]
    tables = [_once_table(once)] if once else []
    return [*tables, _rounds_table(pipeline)] if pipeline.rounds else tables


def _once_table(steps: Sequence[Step]) -> Table:
    """Stage, metric before -> after, baseline, time; "-" where a run has no such number."""
    table = Table(title="What each stage did", title_justify="left")
    for column in ("stage", "metric (held out)", "before", "after", "baseline", "minutes"):
        table.add_column(column, justify="left" if column in ("stage", "metric (held out)", "baseline") else "right")
    for step in steps:
        summary = read_summary(step.folder)
        for row, metric in enumerate(step.stage.metrics):
            baseline = summary.baselines.get(metric)
            table.add_row(
                Text(step.stage.name if row == 0 else ""),
                Text(_named(metric, [summary])),
                *(_number(values.get(metric)) for values in (summary.before, summary.after)),
                Text("" if baseline is None else f"{_number(baseline.value)} {baseline.name}"),
                f"{summary.seconds / 60:.1f}" if row == 0 else "",
            )
    return table


def _rounds_table(pipeline: Pipeline) -> Table:
    """Stage, metric of the weights that the first round began with, and of those that each round ended with."""
    table = Table(title="What each round did", title_justify="left")
    for column in ("stage", "metric (held out)"):
        table.add_column(column)
    for column in ("before", *(f"round {number}" for number in range(1, pipeline.rounds + 1))):
        table.add_column(column, justify="right")
    for stage, steps in _by_stage(pipeline):
        summaries = [read_summary(step.folder) for step in steps]
        for row, metric in enumerate(stage.metrics):
            values = [summaries[0].before.get(metric), *(summary.after.get(metric) for summary in summaries)]
            name = Text(stage.name if row == 0 else "")
            whole = stage.command is not None  # whose numbers are counts, unless they are parts
            table.add_row(name, Text(_named(metric, summaries)), *(_number(value, whole) for value in values))
    return table


def _by_stage(pipeline: Pipeline) -> Iterator[tuple[Stage, list[Step]]]:
    """Each stage of the rounds with its steps."""
    for stage in pipeline.round:
        yield stage, [step for step in steps_of(pipeline) if step.round is not None and step.stage.name == stage.name]


def _named(metric: str, summaries: Sequence[Summary]) -> str:
    logged = any(metric in summary.before or metric in summary.after for summary in summaries)
    return metric.removeprefix("val/") + ("" if logged else " (not logged)")


def _number(value: float | None, counts: bool = False) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if counts and value == round(value) else f"{value:.3f}"


# --- the picture ---


def draw_result(pipeline: Pipeline) -> Path | None:
    """Draw the first metric of each stage that ran once over its run, and all metrics of the rounds over all of them;
    None where there is nothing to draw.

    Raises:
        UserError: the picture cannot be written.
    """
    once = [
        _panel(step, step.stage.metrics[0]) for step in steps_of(pipeline) if step.round is None and step.stage.metrics
    ]
    in_rounds = [_panel_of_rounds(steps, metric) for stage, steps in _by_stage(pipeline) for metric in stage.metrics]
    if not (panels := [*once, *in_rounds]):
        return None
    path = pipeline.root / PICTURE
    write_durably(path, lambda temporary: result_figure(panels).savefig(temporary, dpi=110, format="png"))
    return path


def _panel(step: Step, metric: str) -> Panel:
    baseline = read_summary(step.folder).baselines.get(metric)
    return Panel(step.stage.name, metric, [read_curve(step.folder, metric)], baseline)


def _panel_of_rounds(steps: Sequence[Step], metric: str) -> Panel:
    name = steps[0].stage.name
    if any(read_summary(step.folder).steps for step in steps):
        return Panel(name, metric, curves_of_rounds(steps, metric))
    return Panel(name, metric, [values_of_rounds(steps, metric)], counted="round")


def curves_of_rounds(steps: Sequence[Step], metric: str) -> list[Curve]:
    """A metric in each round of a stage, each curve from the step at which the one before it ended."""
    curves, before = list[Curve](), 0
    for step in steps:
        curves.append([(before + at, value) for at, value in read_curve(step.folder, metric)])
        before += read_summary(step.folder).steps
    return curves


def values_of_rounds(steps: Sequence[Step], metric: str) -> Curve:
    """What each round of a stage ended with, as far as it has the number."""
    values = (read_summary(step.folder).after.get(metric) for step in steps)
    return [(number, value) for number, value in enumerate(values, start=1) if value is not None]


def read_curve(folder: Path, tag: str) -> Curve:
    """(step, value) of a scalar in a run's TensorBoard files; a resumed run's later value of a step wins.

    What is not finite is left out; an empty curve where nothing was logged.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    if tag not in events.Tags()["scalars"]:
        return []
    # By time: files are read by name, and of one second's files the name ends in a count that is not padded.
    points = {event.step: event.value for event in sorted(events.Scalars(tag), key=lambda event: event.wall_time)}
    return sorted((step, value) for step, value in points.items() if math.isfinite(value))


def result_figure(panels: Sequence[Panel]) -> Any:
    """A figure with a panel for each."""
    from matplotlib.figure import Figure

    rows = math.ceil(len(panels) / PANELS)
    columns = math.ceil(len(panels) / rows)
    figure = Figure(figsize=(3.4 * columns, 3.0 * rows), layout="constrained")
    axes = [*figure.subplots(rows, columns, squeeze=False).flat]
    for axis, panel in zip(axes, panels, strict=False):
        _draw(axis, panel)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    return figure


def _draw(axis: Any, panel: Panel) -> None:
    for curve in panel.curves:
        # An untrained model's perplexity would flatten everything that follows it.
        shown = curve[1:] if len(curve) > 2 and curve[0][1] > OUTLIER * curve[1][1] > 0 else curve
        axis.plot([step for step, _ in shown], [value for _, value in shown], marker="o", markersize=3)
    if panel.baseline is not None and panel.baseline.value is not None:
        axis.axhline(panel.baseline.value, color="0.5", linestyle="--")
        axis.legend([axis.lines[-1]], [_plain(panel.baseline.name.strip("()"))], frameon=False)
    metric = _plain(re.sub("^val/", "held-out ", panel.metric).replace("_", " "))
    axis.set(title=_plain(panel.stage), xlabel=panel.counted, ylabel=metric)
    axis.xaxis.get_major_locator().set_params(integer=True)


def _plain(text: str) -> str:
    """Text short enough for a panel, in which no dollar sign begins a formula."""
    return text[:60].replace("$", r"\$")


# --- samples ---


def sample_table(pipeline: Pipeline) -> Table:
    """The same prompts answered by each language model, with the same noise: those that the rounds began with among
    them.
    """
    from gpt_modules.backbone.folders.documents import is_language_model
    from gpt_modules.commands.speaker import folder_texts

    began = {path_of(value): name for name, value in reversed(start_folders(pipeline).items())}
    made = {step.artefact: step.name for step in steps_of(pipeline) if step.stage.command is None}
    speaking = {path: name for path, name in (began | made).items() if is_language_model(path)}
    table = Table(title="What each stage's model says", title_justify="left", show_lines=True)
    for column in ("prompt", *speaking.values()):
        table.add_column(Text(column))
    answers = [folder_texts(path, pipeline.prompts, pipeline.sample_tokens, seed=0) for path in speaking]
    for row in zip(pipeline.prompts, *answers, strict=True):
        table.add_row(*(Text(cell.strip()) for cell in row))
    return table
