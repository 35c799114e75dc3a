"""What a pipeline's stages reached: a table, a picture of their curves, and what their models say."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from gpt_modules.storage.durable import write_durably
from gpt_modules.storage.summary import Baseline, read_summary

if TYPE_CHECKING:
    from gpt_modules.commands.pipelines import Pipeline

Curve = list[tuple[int, float]]
OUTLIER = 5.0


def result_table(pipeline: "Pipeline") -> Table:
    """Stage, metric before -> after, baseline, time; "-" where a run has no such number."""
    table = Table(title="What each stage did", title_justify="left")
    for column in ("stage", "metric (held out)", "before", "after", "baseline", "minutes"):
        table.add_column(column, justify="left" if column in ("stage", "metric (held out)", "baseline") else "right")
    for stage in pipeline.stages:
        summary = read_summary(pipeline.folder(stage))
        for row, metric in enumerate(stage.metrics):
            logged = metric in summary.before or metric in summary.after
            baseline = summary.baselines.get(metric)
            table.add_row(
                Text(stage.name if row == 0 else ""),
                Text(metric.removeprefix("val/") + ("" if logged else " (not logged)")),
                *(_number(values.get(metric)) for values in (summary.before, summary.after)),
                Text("" if baseline is None else f"{_number(baseline.value)} {baseline.name}"),
                f"{summary.seconds / 60:.1f}" if row == 0 else "",
            )
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def draw_result(pipeline: "Pipeline", path: Path) -> None:
    """Draw the first metric of each stage over its run.

    Raises:
        UserError: the picture cannot be written.
    """
    panels = []
    for stage in pipeline.stages:
        for metric in stage.metrics[:1]:
            curve = read_curve(pipeline.folder(stage), metric)
            baseline = read_summary(pipeline.folder(stage)).baselines.get(metric)
            panels.append((stage.name, metric.removeprefix("val/"), curve, baseline))
    write_durably(path, lambda temporary: result_figure(panels).savefig(temporary, dpi=110, format="png"))


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


def result_figure(panels: Sequence[tuple[str, str, Curve, Baseline | None]]) -> Any:
    """A figure with a panel for each (stage, metric, curve, baseline)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(panels), 3.0), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (stage, metric, curve, baseline) in zip(axes, panels, strict=True):
        # An untrained model's perplexity would flatten everything that follows it.
        shown = curve[1:] if len(curve) > 2 and curve[0][1] > OUTLIER * curve[1][1] > 0 else curve
        axis.plot([step for step, _ in shown], [value for _, value in shown], marker="o", markersize=3)
        if baseline is not None and baseline.value is not None:
            axis.axhline(baseline.value, color="0.5", linestyle="--")
            axis.legend([axis.lines[-1]], [_plain(baseline.name.strip("()"))], frameon=False)
        axis.set(title=_plain(stage), xlabel="optimizer step", ylabel=_plain(f"held-out {metric.replace('_', ' ')}"))
    return figure


def _plain(text: str) -> str:
    """Text short enough for a panel, in which no dollar sign begins a formula."""
    return text[:60].replace("$", r"\$")


def sample_table(pipeline: "Pipeline") -> Table:
    """The same prompts answered by each stage's language model, with the same noise."""
    from gpt_modules.backbone.folders.documents import is_language_model
    from gpt_modules.commands.speaker import folder_texts

    speaking = [stage for stage in pipeline.stages if is_language_model(pipeline.export(stage.name))]
    table = Table(title="What each stage's model says", title_justify="left", show_lines=True)
    for column in ("prompt", *(stage.name for stage in speaking)):
        table.add_column(Text(column))
    answers = [
        folder_texts(pipeline.export(stage.name), pipeline.prompts, pipeline.sample_tokens, seed=0)
        for stage in speaking
    ]
    for row in zip(pipeline.prompts, *answers, strict=True):
        table.add_row(*(Text(cell.strip()) for cell in row))
    return table
